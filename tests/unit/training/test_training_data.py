"""Text files, JSON lines, packing: no token is lost, documents are separate, and errors name file and line."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import make_lm, small_tokenizer, text_lm
from strategies import FLOAT64, configs

from bloomref.config import IGNORED_LABEL
from bloomref.errors import InvalidInput
from bloomref.reference.vjp import loss_and_gradients
from bloomref.runtime.engine import Engine
from bloomref.training.batches import Packed, Replayed, steps_of
from bloomref.training.data_files import read
from bloomref.training.documents import Document, split, tokenize
from bloomref.training.evaluation import in_rows, mean_loss
from bloomref.training.packing import Batch, best_fit, cut, lay_out
from bloomref.training.records import Text
from bloomref.training.settings import Settings

TOKENIZER = small_tokenizer()
END = TOKENIZER.end_token_id


# --- files -------------------------------------------------------------------------------------------------------


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode("utf-8"))
    return path


@pytest.mark.clause("TRN-1")
def test_a_text_file_is_one_document_or_several(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one\n\ntwo\nlines\n\n\n\nthree\n")
    assert [text.completion for text in read([path])] == ["one\n\ntwo\nlines\n\n\n\nthree\n"]
    assert [text.completion for text in read([path, path], "\n\n")] == ["one", "two\nlines", "three\n"] * 2


@pytest.mark.clause("TRN-2")
def test_json_lines(tmp_path: Path) -> None:
    lines = [
        '{"text": "意\\n"}',
        "",
        '{"prompt": "a", "completion": " b", "source": 3}',
        '{"prompt": "", "completion": "c"}',
    ]
    texts = read([write(tmp_path / "a.jsonl", "\n".join(lines))])
    assert texts == [Text("", "意\n"), Text("a", " b"), Text("", "c")]


@pytest.mark.clause("TRN-2")
@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "invalid JSON"),
        ("3", "got int"),
        ("{}", "got no keys"),
        ('{"prompt": "a"}', "got the keys prompt"),
        ('{"text": 3}', "text = 3"),
        ('{"text": ""}', "text that is not empty"),
        ('{"prompt": "a", "completion": ""}', "completion that is not empty"),
        ('{"text": "a", "completion": "b"}', "got the keys text, completion; remove completion"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = write(tmp_path / "bad.jsonl", '{"text": "fine"}\n' + line + "\n")
    with pytest.raises(InvalidInput, match=rf"bad\.jsonl, line 2: .*{problem}"):
        read([path])


@pytest.mark.clause("TRN-1")
def test_a_bad_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"missing\.txt: No such file"):
        read([tmp_path / "missing.txt"])
    with pytest.raises(InvalidInput, match=r"empty\.txt, which has none"):
        read([write(tmp_path / "empty.txt", " \n")])
    (tmp_path / "latin.txt").write_bytes(b"fine\nfine\ncaf\xe9\n")
    with pytest.raises(InvalidInput, match=r"UTF-8 text, got .*latin\.txt, line 3"):
        read([tmp_path / "latin.txt"])


# --- tokens ------------------------------------------------------------------------------------------------------

texts = st.text(st.sampled_from("the is意a .,\n"), min_size=1, max_size=20)


@pytest.mark.clause("TRN-3", "TRN-4")
@given(st.text(st.sampled_from("the is意a .,\n"), max_size=20), texts, st.booleans())
def test_documents_end_and_completions_begin(prompt: str, completion: str, completion_only: bool) -> None:
    (document,) = tokenize([Text(prompt, completion)], TOKENIZER, completion_only)
    assert document.token_ids.tolist() == [*TOKENIZER.tokenize(prompt + completion), END]
    learned = document.token_ids[document.is_target]
    assert document.is_target[-1]
    if not completion_only:
        assert document.is_target.all()
        return
    bytes_learned = b"".join(TOKENIZER.token_bytes(i) for i in learned)
    assert bytes_learned.endswith(completion.encode())
    kept = document.token_ids[~document.is_target].tolist()
    assert kept == TOKENIZER.tokenize(prompt)[: len(kept)]
    if TOKENIZER.tokenize(prompt) == document.token_ids[: len(TOKENIZER.tokenize(prompt))].tolist():
        assert bytes_learned == completion.encode()


@pytest.mark.clause("TRN-7")
@given(st.integers(2, 60), st.floats(0.01, 0.9), st.integers(0, 5))
def test_the_held_out_part_is_a_part(count: int, share: float, seed: int) -> None:
    whole = [Document(np.array([i]), np.ones(1, bool)) for i in range(count)]
    if max(1, round(share * count)) >= count:
        with pytest.raises(InvalidInput, match="held_out"):
            split(whole, share, seed)
        return
    kept, held_out = split(whole, share, seed)
    ids = [[int(document.token_ids[0]) for document in part] for part in (kept, held_out)]
    assert sorted(ids[0] + ids[1]) == list(range(count))
    assert len(ids[1]) == max(1, round(share * count))
    assert ids == [sorted(part) for part in ids]
    again = split(whole, share, seed)
    assert [[int(d.token_ids[0]) for d in part] for part in again] == ids


def test_nothing_is_held_out_by_default() -> None:
    whole = [Document(np.array([1]), np.ones(1, bool))]
    assert split(whole, 0.0, 0) == (whole, [])


# --- packing -----------------------------------------------------------------------------------------------------


def drawn_documents(seed: int, count: int, longest: int, vocabulary: int = 20) -> list[Document]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, longest + 1, count)
    return [Document(rng.integers(0, vocabulary, n), np.ones(n, bool)) for n in lengths]


def transitions(documents_: list[Document]) -> list[tuple[int, int]]:
    return sorted((int(a), int(b)) for d in documents_ for a, b in zip(d.token_ids, d.token_ids[1:], strict=False))


@pytest.mark.clause("TRN-5")
@given(st.integers(0, 99), st.integers(1, 12), st.integers(2, 30), st.integers(2, 16))
def test_every_token_but_the_first_is_predicted_once(seed: int, count: int, longest: int, context: int) -> None:
    whole = drawn_documents(seed, count, longest)
    settings = Settings(batch=1, context=context, seed=seed)
    source = Packed(whole, settings, pad_id=3)
    for epoch in (0, 1):
        found = []
        for number in range(source.rows_per_epoch):
            batch = source(epoch * source.rows_per_epoch + number)
            assert batch.token_ids.shape == batch.is_real.shape == batch.labels.shape
            assert batch.token_ids.shape[1] <= context
            found += predicted(batch)
        assert sorted(found) == transitions(whole)


def predicted(batch: Batch) -> list[tuple[int, int]]:
    """(token before, token) of everything that counts."""
    assert batch.document is not None
    rows, columns = np.nonzero(batch.labels != IGNORED_LABEL)
    assert (columns > 0).all()
    assert (batch.document[rows, columns] == batch.document[rows, columns - 1]).all()
    assert (batch.labels[rows, columns] == batch.token_ids[rows, columns]).all()
    assert batch.is_real[rows, columns].all()
    return list(zip(batch.token_ids[rows, columns - 1].tolist(), batch.token_ids[rows, columns].tolist(), strict=True))


@pytest.mark.clause("TRN-5")
@given(st.lists(st.integers(1, 12), max_size=60))
def test_best_fit(lengths: list[int]) -> None:
    rows = best_fit(lengths, 12)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    filled = [sum(lengths[index] for index in row) for row in rows]
    assert all(0 < total <= 12 for total in filled)
    assert sum(total <= 6 for total in filled) <= 1, "two rows that are half empty would have been one"


@pytest.mark.clause("TRN-8")
def test_every_pass_has_an_order_of_its_own() -> None:
    source = Packed(drawn_documents(0, 40, 9), Settings(batch=1, context=12, seed=5), 3)
    passes = [
        [source(epoch * source.rows_per_epoch + row).token_ids.tolist() for row in range(source.rows_per_epoch)]
        for epoch in range(3)
    ]
    assert passes[0] != passes[1] != passes[2] != passes[0]


@pytest.mark.clause("TRN-8")
def test_the_order_is_that_of_the_seed() -> None:
    whole = drawn_documents(0, 40, 9)
    settings = Settings(batch=4, context=12, seed=5)
    first, second = Packed(whole, settings, 3), Packed(whole, settings, 3)
    per_epoch = first.rows_per_epoch // 4 + 1
    ahead = [second(number).token_ids.tolist() for number in reversed(range(3 * per_epoch))]
    assert [first(number).token_ids.tolist() for number in range(3 * per_epoch)] == ahead[::-1]
    other = Packed(whole, Settings(batch=4, context=12, seed=6), 3)
    assert other(0).token_ids.tolist() != first(0).token_ids.tolist()
    assert other.fingerprint == first.fingerprint != Packed(whole[1:], settings, 3).fingerprint


@pytest.mark.clause("TRN-6")
@given(configs(), st.integers(0, 99), st.integers(1, 6), st.sampled_from((3, 7, 16)))
def test_rows_of_several_documents_have_the_loss_and_gradients_of_each_alone(config, seed, count, context) -> None:
    """No leak: every label counts as if its document were in a separate row."""
    lm = make_lm(config, seed)
    whole = drawn_documents(seed, count, 12, config.vocabulary_size)
    pieces = cut(whole, context)
    packed = lay_out([[pieces[i] for i in row] for row in best_fit([len(p.token_ids) for p in pieces], context)], 0)
    alone = lay_out([[piece] for piece in pieces], 0)
    assert alone.document is not None
    results = []
    for batch, document in ((packed, packed.document), (alone, None)):
        arrays = (batch.token_ids, batch.is_real, batch.labels)
        results.append(loss_and_gradients(lm.backbone.params, config, *arrays, document=document))
    ours, truth = results
    assert ours.counted == truth.counted == len(transitions(whole))
    assert ours.loss == pytest.approx(truth.loss, rel=1e-12, abs=1e-13)
    for name, gradient in truth.gradients.items():
        scale = max(1e-9, float(np.abs(gradient).max()))
        np.testing.assert_allclose(ours.gradients[name], gradient, rtol=0, atol=1e-10 * scale + 1e-13, err_msg=name)


def test_without_document_numbers_there_is_a_leak() -> None:
    lm = text_lm()
    whole = drawn_documents(0, 4, 6)
    packed = lay_out([cut(whole, 30)], 0)
    arrays = (packed.token_ids, packed.is_real, packed.labels)
    seen, unseen = (
        loss_and_gradients(lm.backbone.params, lm.backbone.config, *arrays, document=document).loss
        for document in (None, packed.document)
    )
    assert abs(seen - unseen) > 1e-3


@pytest.mark.clause("TRN-4")
def test_a_piece_without_anything_to_learn_is_left_out() -> None:
    ids = np.arange(10)
    pieces = cut([Document(ids, ids >= 8)], 5)
    assert [piece.token_ids.tolist() for piece in pieces] == [[4, 5, 6, 7, 8], [8, 9]]
    assert [piece.labels.tolist() for piece in pieces] == [[IGNORED_LABEL] * 4 + [8], [IGNORED_LABEL, 9]]
    with pytest.raises(InvalidInput, match="at least one token to predict"):
        Packed([Document(ids, ids < 0)], Settings(context=5, completion_only=True), 0)


# --- evaluation, other sources -----------------------------------------------------------------------------------


@pytest.mark.clause("TRN-7")
@given(configs(), st.integers(0, 99), st.integers(1, 6))
def test_the_held_out_loss_is_that_of_training_without_dropout(config, seed, count) -> None:
    lm = make_lm(config, seed)
    pieces = cut(drawn_documents(seed, count, 12, config.vocabulary_size), 8)
    batch = lay_out([[piece] for piece in pieces], 0)
    truth = loss_and_gradients(lm.backbone.params, config, batch.token_ids, batch.is_real, batch.labels)
    engine: Engine = lm.backbone.engine
    assert engine.policy.compute_dtype == FLOAT64
    assert mean_loss(engine, in_rows(pieces, 2, 0)) == pytest.approx(truth.loss, rel=1e-12)


@pytest.mark.clause("TRN-13")
def test_an_iterable_is_replayed_from_any_place() -> None:
    batches = [Batch.of_windows(np.array([[i, i + 1]])) for i in range(5)]
    source = Replayed(batches)
    assert [int(source(i).token_ids[0, 0]) for i in (0, 1, 4, 2, 2, 3, 0)] == [0, 1, 4, 2, 2, 3, 0]
    with pytest.raises(InvalidInput, match="at least 6 batches"):
        source(5)
    with pytest.raises(InvalidInput, match="iterated more than once, got list_iterator"):
        Replayed(iter(batches))


def test_how_many_steps_a_run_has() -> None:
    whole = drawn_documents(0, 10, 2)
    settings = Settings(batch=2, context=2, accumulate=2, epochs=1.5)
    assert steps_of(settings, Packed(whole, settings, 0)) == 4
    assert steps_of(Settings(steps=7), Replayed([])) == 7
    with pytest.raises(InvalidInput, match="steps: expected a number"):
        steps_of(Settings(), Replayed([]))
