"""Text that a trained model writes: the same on every backend, token by token."""

import pytest

from bloomref import BloomCausalLM
from bloomref.runtime import registry

STARTS = (
    "Everyone has", "All human beings are", "The right to", "No one shall be", "1234567890", "x", " ", "!?", "\n\n", "a b c d",
    "Tous les êtres humains", "Toute personne a", "Nul ne sera", "Todos los seres humanos", "Toda persona tiene", "Nadie será",
    "Todos os seres humanos", "Toda a pessoa", "Ninguém será", "Kila mtu", "Watu wote wamezaliwa", "Gbogbo ènìyàn", "Umuntu wonke",
    "Semua orang dilahirkan", "Setiap orang berhak", "Tất cả mọi người", "Mọi người đều", "人人生而自由", "人人有权", "任何人不得", "。",
    "يولد جميع الناس", "لكل إنسان", "لا يجوز", "सभी मनुष्यों को", "प्रत्येक व्यक्ति", "किसी भी", "সমস্ত মানুষ", "প্রত্যেকের", "மனிதர்", "எல்லா",
    "ప్రతి", "ಎಲ್ಲಾ", "എല്ലാ", "ਸਾਰੇ", "ہر شخص", "સર્વ", "Gizon-emakume guztiak", "Tots els éssers humans", "🙂 emoji",
)  # fmt: skip


@pytest.mark.slow
def test_two_hundred_tokens_of_fifty_prompts(backend):
    """Greedy tokens in float32: of a left-padded batch of different lengths, and of each prompt alone."""
    if backend == registry.REFERENCE:
        pytest.skip("the reference is what the others are compared with")
    assert len(set(STARTS)) == 50
    options = {"max_new_tokens": 200, "stop_token_ids": None}
    expected = BloomCausalLM.from_preset("bloom_tiny_udhr").generate(list(STARTS), **options)
    tested = BloomCausalLM.from_preset("bloom_tiny_udhr", backend=backend)
    assert tested.generate(list(STARTS), **options) == expected
    assert [tested.generate(start, **options) for start in STARTS] == expected
