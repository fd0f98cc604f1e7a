"""Chat templates in the shapes that real ones have, and conversations for them."""

from typing import Any

CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

TEMPLATES = {
    "chatml": CHATML,
    "instructions in brackets": """{% if messages[0]['role'] == 'system' %}
{% set loop_messages = messages[1:] %}
{% set system = '<<SYS>>\\n' + messages[0]['content'] | trim + '\\n<</SYS>>\\n\\n' %}
{% else %}
{% set loop_messages = messages %}
{% set system = '' %}
{% endif %}
{% for message in loop_messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('roles must alternate') }}
    {% endif %}
    {% if message['role'] == 'user' %}
        {{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'] | trim + ' [/INST]' }}
    {% else %}
        {{ ' ' + message['content'] + ' ' + eos_token }}
    {% endif %}
{% endfor %}""",
    "headings": """{% for m in messages %}
### {{ {'system': 'System', 'user': 'Instruction', 'assistant': 'Response'}[m.role] }}:
{{ m.content }}

{% endfor %}
{% if add_generation_prompt %}
### Response:
{% endif %}""",
    "names before colons": """{{ bos_token }}{% for m in messages if m.role != 'system' -%}
{{ m.role | capitalize }}: {{ m.content }}{{ eos_token if m.role == 'assistant' else '\\n' }}
{%- endfor %}{{ 'Assistant:' if add_generation_prompt }}""",
    "namespaces and breaks": """{% set ns = namespace(system='none', count=0) %}
{% for m in messages %}
{% if m.role == 'system' %}{% set ns.system = m.content %}{% continue %}{% endif %}
{% set ns.count = ns.count + 1 %}
{% if ns.count > 3 %}{% break %}{% endif %}
{{ ns.count }}{{ m.content }}|{{ ns.system }}
{% endfor %}""",
    "tools as JSON": """{% if tools %}
[TOOLS]{{ tools | tojson }}
{{ tools | tojson(indent=4) }}
{{ tools[0].function | tojson(separators=(',', ':'), sort_keys=True) }}[/TOOLS]
{% endif %}
{% for m in messages %}
{{ m.role }}: {{ m.content or '' }}
{% for call in m.tool_calls or [] %}
<call>{{ call.function | tojson }}</call>
{% endfor %}
{% endfor %}""",
    "documents": """{% for d in documents or [] %}
<doc {{ loop.index }}>{{ d.title | default('untitled') }}: {{ d['text'] }}</doc>
{% endfor %}
{% for m in messages %}{{ m.content }}{% if not loop.last %} / {% endif %}{% endfor %}""",
    "parts of a message": """{% for m in messages %}
{{ m.role }}>
{% if m.content is string %}{{ m.content }}{% else %}
{% for part in m.content if part.type == 'text' %}{{ part.text }}{% endfor %}
{% endif %}
{% endfor %}""",
    "macros and filters": """{% macro say(m, upper=false) %}
[{{ m.role | upper if upper else m.role }}] {{ m.content | replace('a', 'A') | indent(2) }}
{% endmacro %}
{% for role, group in messages | groupby('role') %}{{ role }}={{ group | length }} {% endfor %}
{% for m in messages %}{{ say(m, upper=loop.last) }}{% endfor %}
{{ messages | map(attribute='content') | select('string') | join('~') | title }}""",
    "marked answers": """{% for m in messages %}
{% if m.role == 'assistant' %}
<|im_start|>{% generation %}{{ m.content }}<|im_end|>
{% endgeneration %}
{% else %}
<|im_start|>{{ m.content }}<|im_end|>
{% endif %}
{% endfor %}""",
    "reasoning": """{% for m in messages %}
{{ m.reasoning_content or '-' }} {{ m.thinking | default('+') }} {{ m.reasoning is defined }}
{{ m.content.split('a')[-1].strip() if m.content is string }}
{% endfor %}""",
    "special tokens and variables": """{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}
{{ enable_thinking is defined and enable_thinking }} {{ effort | default('low') }} {{ tools is none }} {{ tools is defined }}
{{ strftime_now('%Y')[:2] }}{{ dict(a=1).items() | list }} {{ messages[-1]['content'][:3] }} {{ 7 // 2 }} {{ '<b>' }}""",
    "spaces": """
  {%- if messages %}
      {% for m in messages %}

    {{ m.content }}   {# a note #}
      {%+ if loop.last %}x{% endif +%}
  {% endfor %}
  {% endif -%}

end""",
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "wetter",
            "description": "Wetter für <Ort> & Zeit",
            "parameters": {"type": "object", "properties": {"ort": {"type": "string"}}, "required": ["ort"]},
        },
    }
]
DOCUMENTS = [{"title": "A", "text": "the a"}, {"text": "b"}]
_USER = {"role": "user", "content": " Was ist\nthe <a> & b? 意 "}
_ANSWER = {"role": "assistant", "content": "the a is.\n\n  is"}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one question": [_USER],
    "with a system": [{"role": "system", "content": "be the a "}, _USER, _ANSWER, {"role": "user", "content": "a"}],
    "an answer last": [_USER, _ANSWER],
    "keys that are null": [{**_USER, "tool_calls": None, "name": None}, _ANSWER],
    "a call": [
        _USER,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "wetter", "arguments": {"a": 1.5}}}],
        },
        {"role": "tool", "content": "12 °"},
    ],
    "parts": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "the a"}]}],
    "thoughts": [_USER, {**_ANSWER, "reasoning": "hm"}, {**_ANSWER, "thinking": "so"}],
}
