"""Speech as text: Whisper's loss and CTC's are transformers' own; what is heard and written is decoded and judged."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoConfig

from peftkit.config.sections import Generate, Model
from peftkit.errors import ConfigError, ModelError
from peftkit.evaluation.generate import until_end, write_texts
from peftkit.models.configure import configure
from peftkit.models.load import load
from peftkit.strategies import Strategy
from peftkit.tasks import SpeechRecognition, Task
from peftkit.tasks.base import IGNORED, RowError
from peftkit.tasks.speech_recognition import frames_of
from tests.tiny import EOS, PAD, config, save_sound, save_tiny, sound

TEXTS = ("all well", "book", "no", "a longer line")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    kinds = {"whisper": {}, "wav2vec2": {"vocab_size": 32}, "group": {"vocab_size": 32, "feat_extract_norm": "group"}}
    families = {"group": "wav2vec2"}
    return {kind: save_tiny(folder / kind, families.get(kind, kind), **words) for kind, words in kinds.items()}


@pytest.fixture
def rows(tmp_path):
    seconds = (0.2, 0.35, 0.12, 0.28)
    return [
        {"audio": save_sound(tmp_path / f"{n}.wav", n, length), "text": TEXTS[n]} for n, length in enumerate(seconds)
    ]


def loaded(base, rows, **settings):
    task = SpeechRecognition(**settings).bind(AutoConfig.from_pretrained(base)).fit(rows)
    found = load(Model(path=str(base)), task, Strategy.model_validate("full"), torch.float32, 0)
    return task, found, [task.encode(row, found.processor, 128) for row in rows]


def test_the_model_says_how_it_writes(bases, rows):
    assert [loaded(bases[kind], rows)[0].writes for kind in ("whisper", "wav2vec2")] == ["seq2seq", "ctc"]
    assert [type(loaded(bases[kind], rows)[1].model).__name__ for kind in ("whisper", "wav2vec2")] == [
        "WhisperForConditionalGeneration",
        "Wav2Vec2ForCTC",
    ]


def test_whispers_loss_is_transformers_mean_times_the_tokens(bases, rows):
    task, base, features = loaded(bases["whisper"], rows)
    batch = task.collate(features, base.processor)
    theirs = base.model(**batch).loss * task.targets(batch)
    assert_close(task.loss(base.model(**task.inputs(batch)), batch), theirs)
    assert all(row["labels"][-1] == EOS for row in features)


def test_the_ctc_loss_is_transformers_sum_over_the_characters(bases, rows):
    task, base, features = loaded(bases["wav2vec2"], rows)
    batch = task.collate(features, base.processor)
    base.model.config.ctc_loss_reduction = "sum"
    theirs = base.model(
        input_values=batch["input_values"], attention_mask=batch["attention_mask"], labels=batch["labels"]
    )
    assert_close(task.loss(base.model(**task.inputs(batch)), batch), theirs.loss)
    assert task.targets(batch) == sum(map(len, TEXTS))


@pytest.mark.parametrize("kind", ["whisper", "wav2vec2", "group"])
def test_a_rows_loss_does_not_hang_on_the_rows_beside_it(kind, bases, rows):
    task, base, features = loaded(bases[kind], rows)
    whole = task.collate(features, base.processor)
    apart = [task.collate([one], base.processor) for one in features]
    losses = [task.loss(base.model(**task.inputs(one)), one) for one in apart]
    assert_close(task.loss(base.model(**task.inputs(whole)), whole), sum(losses), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["whisper", "wav2vec2"])
def test_records_sum_up_to_the_loss(kind, bases, rows):
    task, base, features = loaded(bases[kind], rows)
    batch = task.collate(features, base.processor)
    outputs = base.model(**task.inputs(batch))
    records = task.score(outputs, batch)
    assert sum(record["loss"] for record in records) == pytest.approx(float(task.loss(outputs, batch)), rel=1e-5)
    assert sum(record["targets"] for record in records) == task.targets(batch)


@pytest.mark.parametrize("kind", ["whisper", "wav2vec2"])
def test_a_blank_batch_has_no_targets_and_no_loss(kind, bases, rows):
    task, base, features = loaded(bases[kind], rows)
    blank = task.blank(task.collate(features, base.processor))
    loss = task.loss(base.model(**task.inputs(blank)), blank)
    loss.backward()
    assert (task.targets(blank), loss.item()) == (0, 0.0)


def test_whisper_writes_what_greedy_steps_of_its_forward_write(bases, rows):
    task, base, features = loaded(bases["whisper"], rows)
    batch, model = task.collate(features, base.processor), base.model.eval()
    written = write_texts(model, task, batch, base.processor, Generate(max_new_tokens=5))
    ids = torch.tensor([task.prefix(base.processor)] * 4)
    with torch.no_grad():
        for _ in range(5):
            logits = model(input_features=batch["input_features"], decoder_input_ids=ids).logits[:, -1]
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    assert written == [until_end(row[1:].tolist(), {EOS}) for row in ids]
    assert any(written)


def test_what_whisper_wrote_is_judged_against_the_rows_text(bases, rows):
    task, base, features = loaded(bases["whisper"], rows)
    behind_prefix = len(task.prefix(base.processor)) - 1
    text = [token for token in features[0]["labels"] if token not in (IGNORED, EOS)]
    record = {"loss": 1.0, "targets": 3, "generated_ids": [5] * behind_prefix + text}
    judged = task.judge(rows[0], [record], base.processor)
    assert (judged["reference"], judged["generated"]) == ("all well", "all well")


def test_what_ctc_hears_is_the_likeliest_path_without_repetition_and_silence(bases, rows):
    task, base, _ = loaded(bases["wav2vec2"], rows)
    a, l, bar = base.processor.tokenizer.convert_tokens_to_ids(["a", "l", "|"])  # noqa: E741
    path = [PAD, a, a, PAD, l, l, PAD, l, bar, bar, a, PAD]
    logits = torch.nn.functional.one_hot(torch.tensor([path + [l] * 4]), 32).float()
    labels = torch.tensor([[a, l]])
    batch = {"labels": labels, "frames": torch.tensor([len(path)])}
    (record,) = task.score(type("Outputs", (), {"logits": logits}), batch)
    assert task.judge({"text": "all a"}, [record], base.processor)["generated"] == "all a"


@pytest.mark.parametrize("kind", ["whisper", "wav2vec2"])
def test_a_sound_without_a_text_is_written_down_as_with_one(kind, bases, rows):
    task, base, features = loaded(bases[kind], rows)
    blind = [task.encode(task.unlabelled({"audio": row["audio"]}), base.processor, 128) for row in rows]
    written = []
    for made in (features, blind):
        batch = task.collate(made, base.processor)
        outputs = base.model.eval()(**task.inputs(batch))
        records = task.score(outputs, batch)
        asked = task.prompts(batch, base.processor)
        if asked:
            ids = base.model.generate(**asked, max_new_tokens=6, do_sample=False)
            records = [{**record, "generated_ids": row.tolist()} for record, row in zip(records, ids, strict=True)]
        at_once = zip([task.unlabelled(row) for row in rows], records, strict=True)
        written.append([task.judge(row, [record], base.processor)["generated"] for row, record in at_once])
    assert written[0] == written[1]
    assert task.targets(batch) == 0
    assert [(record["loss"], record["targets"]) for record in records] == [(0.0, 0)] * len(rows)
    assert task.judge(task.unlabelled(rows[0]), records[:1], base.processor)["reference"] is None


def test_frames_are_counted_as_the_model_counts_them():
    for kernels, strides in (([10, 3], [5, 4]), ([10, 3, 3, 3, 3, 2, 2], [5, 2, 2, 2, 2, 2, 2])):
        settings = config(
            "wav2vec2",
            conv_kernel=kernels,
            conv_stride=strides,
            conv_dim=[8] * len(kernels),
            num_feat_extract_layers=len(kernels),
        )
        task = SpeechRecognition().bind(settings)
        with torch.device("meta"):
            model = tiny_of(settings)
        for length in (400, 401, 719, 720, 721, 16_000, 16_161):
            assert task._frames(length) == int(model._get_feat_extract_output_lengths(length))


def tiny_of(settings):
    from transformers import Wav2Vec2Model

    return Wav2Vec2Model(settings)


def test_a_model_whose_frames_are_not_known_is_refused():
    with pytest.raises(ConfigError, match=r"frames of a wav2vec2 are not known here"):
        frames_of(config("wav2vec2", add_adapter=True))


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"text": ""}, "no 'text'"),
        ({"text": 3}, "'text' is no text but int"),
        ({"text": "LOUD"}, r"most of its text's characters are not in the model's vocabulary \(capital letters"),
        ({"text": "a word " * 80}, r"its sound has fewer frames than its text has characters \(559\)"),
        ({"audio": sound(1, 2.0), "text": "no"}, r"its sound is longer than --task.seconds 1$"),
    ],
)
def test_rows_that_cannot_be_learnt_say_why(row, why, bases, rows):
    task, base, _ = loaded(bases["wav2vec2"], rows, seconds=1)
    with pytest.raises(RowError, match=why):
        task.encode({**rows[0], **row}, base.processor, 128)


def test_a_text_that_the_decoder_cannot_hold_is_left_out(bases, rows):
    task, base, features = loaded(bases["whisper"], rows)
    length = len(features[3]["decoder_input_ids"]) + 1
    assert task.encode(rows[3], base.processor, length)["labels"] == features[3]["labels"]
    with pytest.raises(RowError, match=f"longer than the {length - 1} tokens"):
        task.encode(rows[3], base.processor, length - 1)


def test_whispers_prefix_names_language_and_task_and_is_not_learnt(tmp_path):
    from transformers import WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizer
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    languages = [f"<|{language}|>" for language in LANGUAGES]
    named = [
        "<|endoftext|>",
        "<|startoftranscript|>",
        *languages,
        "<|translate|>",
        "<|transcribe|>",
        "<|notimestamps|>",
    ]
    letters = {letter: number for number, letter in enumerate("Ġabdeghilnrstuw")}
    tokenizer = WhisperTokenizer(vocab=letters, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": named})
    processor = WhisperProcessor(WhisperFeatureExtractor(feature_size=8, chunk_length=1), tokenizer)
    task = SpeechRecognition(language="german", writes="seq2seq", pad_to=0)
    features = task.encode({"audio": sound(1, 0.1), "text": "hallo"}, processor, 100)
    words = tokenizer.convert_ids_to_tokens(features["decoder_input_ids"])
    assert words[:4] == ["<|startoftranscript|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>"]
    assert features["labels"][:3] == [IGNORED] * 3
    assert features["labels"][3:-1] == features["decoder_input_ids"][4:]
    assert words[4] == "Ġ"
    translated = SpeechRecognition(language="german", translate=True, writes="seq2seq", pad_to=0).prefix(processor)
    assert tokenizer.convert_ids_to_tokens(translated)[2] == "<|translate|>"


def test_a_whisper_of_many_languages_asks_for_one():
    many = config("whisper", vocab_size=51_865)
    with pytest.raises(ConfigError, match=r"name that of the texts with --task\.language"):
        SpeechRecognition().bind(many)
    assert SpeechRecognition(language="de").bind(many).writes == "seq2seq"


def test_a_model_that_does_not_hear_is_refused(tmp_path):
    base = save_tiny(tmp_path, "llama")
    with pytest.raises(ModelError, match="--task speech_recognition does not go with this model"):
        configure(Model(path=str(base)), SpeechRecognition(), str(base))


def test_a_model_without_a_tokenizer_is_refused(bases, rows):
    task, base, _ = loaded(bases["wav2vec2"], rows)
    with pytest.raises(ConfigError, match="a feature extractor and no tokenizer"):
        task.encode(rows[0], base.processor.feature_extractor, 128)


def test_a_bound_task_survives_writing_and_reading(bases, rows):
    task = loaded(bases["wav2vec2"], rows)[0]
    assert Task.model_validate(task.model_dump(mode="json")) == task


@pytest.mark.parametrize("kind", ["whisper", "wav2vec2"])
def test_a_row_in_words_is_the_sounds_length_and_its_text(kind, bases, rows):
    task, base, features = loaded(bases[kind], rows)
    pieces = task.pieces(features[1], base.processor)
    assert pieces[0] == ("sound of 0.3 s", False)
    assert pieces[2][1]
    assert "book" in pieces[2][0]
