"""Texts in twelve scripts, with the white space, digits and signs at which tokens meet."""

from random import Random

SENTENCES = (
    "Every child may read, write and count: nobody is too young, or too old.",
    "Jedes Mädchen läuft schnell über die große Straße; l'été, ça va?",
    "Каждый человек может читать и писать, где бы он ни жил.",
    "Κάθε άνθρωπος μπορεί να διαβάζει και να γράφει· πού μένεις;",
    "لكل إنسان أن يقرأ ويكتب، أينما كان، في 10 أيام.",
    "כל אדם יכול לקרוא ולכתוב בכל מקום שהוא גר בו.",
    "हर बच्चा पढ़ और लिख सकता है। वह कहाँ रहता है?",
    "প্রত্যেক শিশু পড়তে ও লিখতে পারে। সে কোথায় থাকে?",
    "ஒவ்வொரு குழந்தையும் படிக்கலாம், எழுதலாம்.",
    "เด็กทุกคนอ่านและเขียนได้ ไม่ว่าจะอยู่ที่ไหน",
    "每个孩子都可以读书、写字。他住在哪里?二十三号。",
    "どの子どもも読み書きができます。カタカナも、漢字も。",
    "모든 아이는 읽고 쓸 수 있다. 어디에 사느냐?",
)
JOINS = (" ", "  ", "\n", "\n\n", "", " – ", "\t", "\u3000", " 👩‍👧 ", "…")


def texts(count: int, seed: int, length: int = 40) -> list[str]:
    """Parts of two or three sentences, of any scripts, at most `length` characters each, joined by JOINS."""
    random = Random(seed)
    return [_text(random, length) for _ in range(count)]


def _text(random: Random, length: int) -> str:
    pieces = []
    for _ in range(random.randint(2, 3)):
        sentence = random.choice(SENTENCES)
        begin = random.randrange(len(sentence))
        pieces += [sentence[begin : begin + length // 3], random.choice(JOINS)]
    return "".join(pieces)[:length]
