"""The demo model's text, its tokenizer and its training twin: what is held out stays out, and answers are right."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path

import pytest
import torch

from hopformer.llama.demo import facts, families, phrasings, remarks, stories, text
from hopformer.llama.demo.measure import Score, answers
from hopformer.llama.demo.network import DemoLlama, DemoShape
from hopformer.llama.demo.train import Plan, batches, loss_of, make_tokenizer, save_configs, save_weights, train
from hopformer.llama.demo.vocabulary import ChatEncoder

TINY = DemoShape(
    vocab_size=512, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8
)
ALL_PHRASINGS = [(name, family) for name, family in vars(phrasings).items() if isinstance(family, phrasings.Phrasings)]
STATED = re.compile(r"(\d+) (plus|minus) (\d+) is (-?\d+|less than zero)\.")


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    return ChatEncoder(make_tokenizer(TINY, seed=5, num_messages=2000))


def trained_messages(seed: int, count: int) -> list[text.Message]:
    return list(itertools.islice(text.training_messages(random.Random(seed)), count))


def test_the_same_seed_is_the_same_text() -> None:
    assert trained_messages(7, 300) == trained_messages(7, 300)
    assert trained_messages(7, 300) != trained_messages(8, 300)
    assert list(text.held_out(seed=3, rounds=2)) == list(text.held_out(seed=3, rounds=2))


def test_users_and_assistant_take_turns() -> None:
    for seed in range(30):
        roles = [message["role"] for message in trained_messages(seed, 20)]
        start = 1 if roles[0] == "system" else 0
        assert all(role == ("user", "assistant")[index % 2] for index, role in enumerate(roles[start:]))


def test_every_sum_and_difference_in_the_text_is_right() -> None:
    stated = [STATED.fullmatch(message["content"]) for message in trained_messages(11, 4000)]
    found = [match.groups() for match in stated if match]
    assert len(found) > 500
    for a, sign, b, result in found:
        right = int(a) + int(b) if sign == "plus" else int(a) - int(b)
        assert result == ("less than zero" if right < 0 else str(right))


def test_no_held_out_pair_is_in_the_training_text() -> None:
    seen = set()
    for seed in range(10):
        for message in trained_messages(seed, 1000):
            if match := STATED.fullmatch(message["content"]):
                a, b = int(match[1]), int(match[3])
                seen.add((min(a, b), max(a, b)))
    assert len(seen) > 700
    assert not seen & families.HELD_OUT_PAIRS


def test_no_held_out_start_begins_a_count_in_the_training_text() -> None:
    rng = random.Random(2)
    for _ in range(3000):
        turn = families.COUNTING.ask(rng, held_out=False)
        first = int(re.findall(r"\d+", turn.question)[0])
        assert first not in families.HELD_OUT_STARTS


@pytest.mark.parametrize(("name", "family"), ALL_PHRASINGS, ids=[name for name, _ in ALL_PHRASINGS])
def test_trained_and_held_out_phrasings_are_disjoint(name: str, family: phrasings.Phrasings) -> None:
    def bare(templates: tuple[str, ...]) -> set[str]:
        return {re.sub(r"[^a-z{}+\- ]", "", template.lower()).strip() for template in templates}

    assert not bare(family.all(held_out=False)) & bare(family.all(held_out=True))
    assert family.held_out


def test_held_out_remarks_are_not_trained() -> None:
    trained = {remark.lower().rstrip(".!?") for group in remarks.SMALL_TALK for remark in group.trained}
    for group in remarks.SMALL_TALK:
        assert not trained & {remark.lower().rstrip(".!?") for remark in group.held_out}
    rng = random.Random(6)
    untaught = {families.Untaught().ask(rng, held_out=False).question for _ in range(20_000)}
    assert len(untaught) > 3000
    assert not untaught & set(remarks.HELD_OUT_UNTAUGHT)


def test_going_on_from_a_result_never_needs_a_held_out_pair_or_falls_below_zero() -> None:
    rng = random.Random(9)
    for sums_or_differences in (families.SUMS, families.DIFFERENCES):
        turns = [sums_or_differences.go_on(rng, rng.randrange(120), held_out=False) for _ in range(2000)]
        went_on = [STATED.fullmatch(turn.accepted[0]) for turn in turns if turn]
        assert len(went_on) > 1000
        for match in went_on:
            assert match
            assert match[4] != "less than zero"
            assert (min(int(match[1]), int(match[3])), max(int(match[1]), int(match[3]))) not in families.HELD_OUT_PAIRS


def test_half_of_the_held_out_pairs_in_the_sample_come_from_held_out_numbers() -> None:
    items = [item for item in text.held_out(rounds=20) if item.family in ("sum", "difference")]
    held = 0
    for item in items:
        match = STATED.fullmatch(item.accepted[0])
        assert match
        a, b = int(match[1]), int(match[3])
        held += (min(a, b), max(a, b)) in families.HELD_OUT_PAIRS
    assert held * 2 == len(items) == 160


def test_held_out_questions_cover_every_family() -> None:
    found = {item.family for item in text.held_out(rounds=30)}
    families_named = "sum difference counting capital opposite colour backwards story greeting who thanks goodbye"
    assert found == {*families_named.split(), "unknown", "name", "follow-up"}


def test_a_name_is_asked_after_it_was_told_and_not_before() -> None:
    for seed in range(30):
        told = None
        for question, answer in itertools.pairwise(trained_messages(seed, 120)):
            if match := re.fullmatch(r"Nice to meet you, (\w+)\.", answer["content"]):
                told = match[1]
                assert told.lower() in question["content"].lower()
            if answer["content"].startswith("Your name is"):
                assert answer["content"] == f"Your name is {told}."
            if answer["content"].startswith("You have not told"):
                assert told is None


def test_tables_have_one_answer_for_each_question() -> None:
    both_ways = [word for pair in facts.OPPOSITES for word in pair]
    for entries in ([x for x, _ in facts.CAPITALS], both_ways, [x for _, x, _ in facts.COLOURS], facts.BACKWARDS):
        assert len(set(entries)) == len(entries)
    assert not set(facts.BACKWARDS) & set(facts.UNTAUGHT_WORDS)
    assert not set(facts.STORY_SUBJECTS) & set(facts.HELD_OUT_SUBJECTS)


def test_a_told_story_is_among_all_stories_of_its_subject() -> None:
    rng = random.Random(4)
    every = stories.every_story("owl")
    assert len(set(every)) == 288
    assert all(stories.tell(rng, "owl") in every for _ in range(20))
    assert every[0].startswith("Once there was a little owl")


def test_a_prompt_is_what_the_chat_template_renders(encoder: ChatEncoder, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save_configs(encoder, TINY, tmp_path)
    oracle = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "system", "content": "Be kind."}, *trained_messages(21, 8)]
    messages = [message for index, message in enumerate(messages) if index == 0 or message["role"] != "system"]
    if messages[-1]["role"] == "assistant":
        messages.pop()
    rendered = oracle.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert encoder.prompt(messages) == rendered
    assert oracle.eos_token_id == encoder.end_id


@pytest.mark.parametrize(
    "text_in", ["What is 12 plus 305?", "grüße, 世界 🦊", "  two  spaces\n\ttab", "<b>&amp;</b>\x00"]
)
def test_any_text_round_trips_through_the_tokenizer(encoder: ChatEncoder, text_in: str) -> None:
    assert encoder.tokenizer.decode(encoder.tokenizer.encode(text_in).ids, skip_special_tokens=False) == text_in


def test_digits_are_tokens_of_their_own(encoder: ChatEncoder) -> None:
    assert encoder.tokenizer.encode("12+305").tokens == ["1", "2", "+", "3", "0", "5"]


def test_only_the_assistants_tokens_are_learned(encoder: ChatEncoder) -> None:
    ids, learned = encoder.message({"role": "assistant", "content": "2 plus 3 is 5."})
    taught = [token for token, mark in zip(ids, learned, strict=True) if mark]
    assert encoder.tokenizer.decode(taught, skip_special_tokens=False) == "2 plus 3 is 5.<|im_end|>"
    assert not any(encoder.message({"role": "user", "content": "2 plus 3?"})[1])
    rows, marks = next(batches(encoder, Plan(seed=3)))
    assert rows.shape == marks.shape
    assert rows.numel() == Plan().batch_tokens
    assert 0.2 < marks.float().mean() < 0.6


def test_the_training_twin_computes_what_transformers_computes(encoder: ChatEncoder, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = DemoLlama(TINY).to(torch.bfloat16).float()
    save_configs(encoder, TINY, tmp_path)
    save_weights(model, tmp_path)
    oracle = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(0, TINY.vocab_size, (3, 17))
    with torch.no_grad():
        torch.testing.assert_close(model.logits(model(ids)), oracle(ids).logits, rtol=1e-4, atol=1e-4)


def test_the_loss_of_one_batch_falls_when_it_is_learned(encoder: ChatEncoder) -> None:
    torch.manual_seed(0)
    model = DemoLlama(TINY)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    ids, learned = next(batches(encoder, Plan(batch_tokens=512, lengths=((64, 1.0),))))
    first = loss_of(model, ids, learned)
    for _ in range(15):
        loss = loss_of(model, ids, learned)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.6 * first.item()


def test_a_run_ends_after_its_time_with_an_average_that_has_learned(encoder: ChatEncoder, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DemoLlama(TINY)
    plan = Plan(minutes=0.03, batch_tokens=256, lengths=((64, 1.0),), peak_rate=1e-2)
    ids, learned = next(batches(encoder, Plan(seed=8, batch_tokens=512, lengths=((64, 1.0),))))
    before = loss_of(model, ids, learned).item()
    average = train(model, encoder, plan, tmp_path)
    assert average is not model
    assert loss_of(average, ids, learned).item() < before


def test_the_learning_rate_rises_then_falls_to_its_last_value() -> None:
    plan = Plan()
    rates = [plan.rate(progress) for progress in (0.0, plan.warmup, 0.5, 1.0)]
    assert rates[0] < rates[1] > rates[2] > rates[3]
    assert rates[1] == pytest.approx(plan.peak_rate)
    assert rates[3] == pytest.approx(plan.final_rate)


def test_answers_do_not_depend_on_the_rows_beside_them(encoder: ChatEncoder) -> None:
    torch.manual_seed(1)
    model = DemoLlama(TINY)
    prompts = [encoder.prompt([{"role": "user", "content": said}]) for said in ("Hi", "What is 2 plus 3?", "Bye now")]
    alone = [answers(model, encoder, [prompt], max_tokens=6)[0] for prompt in prompts]
    assert answers(model, encoder, prompts, max_tokens=6) == alone


def test_a_score_counts_an_answer_right_only_when_it_is_accepted() -> None:
    item = text.HeldOut("sum", [{"role": "user", "content": "2+3"}], ("2 plus 3 is 5.",))
    result = Score()
    result.add(item, "2 plus 3 is 5.")
    result.add(item, "2 plus 3 is 55.")
    assert result.accuracy == 0.5
    assert [answer for _, answer in result.wrong] == ["2 plus 3 is 55."]
    assert "sum 50%" in result.table()


def test_the_demo_shape_fits_in_eight_megabytes() -> None:
    with torch.device("meta"):
        model = DemoLlama(DemoShape())
    assert DemoShape().num_layers == 8
    assert sum(weight.numel() for weight in model.parameters()) * 2 < 8_000_000
