"""The printable spelling of bytes in byte-level BPE, and the bytes that a pruned vocabulary cannot spell.

A printable byte is spelled as itself, any other byte as the next unused character from U+0100 on.
"""

from collections.abc import Container

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(0x100 + i): byte for i, byte in enumerate(_OTHERS)}
"""Character -> byte."""
_NEVER = (0xC0, 0xC1, *range(0xF5, 0x100))  # bytes that UTF-8 does not use
_SHOWN = 12


def to_bytes(token: str) -> bytes:
    """Bytes of a token. An added token, which is not in the byte spelling, is encoded as UTF-8."""
    if all(character in BYTES for character in token):
        return bytes(BYTES[character] for character in token)
    return token.encode()


def missing_bytes(vocabulary: Container[str]) -> list[int]:
    """The bytes of UTF-8 that have no token of their own: a text with one of them loses it."""
    return sorted(byte for character, byte in BYTES.items() if character not in vocabulary and byte not in _NEVER)


def named_bytes(numbers: list[int]) -> str:
    """Bytes for a message: those of visible ASCII characters as text, others in hexadecimal."""
    shown = [repr(chr(byte)) if 0x20 <= byte < 0x7F else f"0x{byte:02X}" for byte in numbers[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else "")
