"""Flags and what they mean to the rooms below."""

import logging

import pytest

from hopformer.cli.options import LoadFlags, OutputFlags, SamplingFlags, StopFlags, parse_ids, parse_layers
from hopformer.errors import RequestError, UsageError
from hopformer.llama.config import GenerationDefaults
from hopformer.llama.sampling import SamplingParams

GREEDY = GenerationDefaults()
SAMPLED = GenerationDefaults(do_sample=True, temperature=0.6, top_k=20, top_p=0.9, min_p=0.1, repetition_penalty=1.1)


def test_without_flags_and_without_advice_decoding_is_greedy() -> None:
    assert SamplingFlags().params(GREEDY) == SamplingParams()


def test_the_models_advice_holds_where_it_samples() -> None:
    expected = SamplingParams(temperature=0.6, top_k=20, top_p=0.9, min_p=0.1, repetition_penalty=1.1)
    assert SamplingFlags().params(SAMPLED) == expected


def test_advice_about_sampling_is_ignored_where_the_model_does_not_sample() -> None:
    unsampled = GenerationDefaults(do_sample=False, temperature=0.6, top_k=20, repetition_penalty=1.2)
    assert SamplingFlags().params(unsampled) == SamplingParams(repetition_penalty=1.2)


def test_a_flag_wins_over_the_models_advice() -> None:
    flags = SamplingFlags(temperature=0.0, top_k=5, seed=7)
    expected = SamplingParams(0.0, top_k=5, top_p=0.9, min_p=0.1, repetition_penalty=1.1, seed=7, logprobs=3)
    assert flags.params(SAMPLED, logprobs=3) == expected


def test_a_flag_without_effect_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        SamplingFlags(top_p=0.5).params(GREEDY)
    assert "--top-p changes nothing" in caplog.text


def test_temperature_0_next_to_other_flags_needs_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        SamplingFlags(temperature=0.0, top_p=0.5).params(GREEDY)
    assert not caplog.records


@pytest.mark.parametrize("flags", [SamplingFlags(temperature=-1.0), SamplingFlags(top_p=float("nan"))])
def test_a_sampling_flag_out_of_range_is_refused(flags: SamplingFlags) -> None:
    with pytest.raises(RequestError, match="must be"):
        flags.params(GREEDY)


def test_load_flags_become_load_options() -> None:
    options = LoadFlags("cpu", "float32", 99, "chatml").options()
    assert (options.device, options.dtype, options.max_context, options.template) == ("cpu", "float32", 99, "chatml")
    assert (options.kv_dtype, options.cuda_graphs) == ("auto", True)
    options = LoadFlags(kv_dtype="int8", cuda_graphs=False).options()
    assert (options.kv_dtype, options.cuda_graphs) == ("int8", False)
    assert options.quantize == "none" and LoadFlags(quantize="int4").options().quantize == "int4"


@pytest.mark.parametrize(
    "flags",
    [StopFlags(max_tokens=0), StopFlags(max_tokens=-5), StopFlags(stop=["a", ""]), StopFlags(stop_ids=["1,", "2"])],
)
def test_stop_flags_that_mean_nothing_are_refused_before_loading(flags: StopFlags) -> None:
    with pytest.raises(UsageError):
        flags.check()


def test_every_stop_ids_is_a_sequence_of_its_own() -> None:
    assert StopFlags(stop_ids=["1,2", "3"]).stop_sequences() == ((1, 2), (3,))


def test_a_default_length_gives_way_to_a_given_one() -> None:
    assert StopFlags().limited(256).max_tokens == 256
    assert StopFlags(max_tokens=9).limited(256).max_tokens == 9


@pytest.mark.parametrize("flags", [OutputFlags(logprobs=2), OutputFlags(json=True, logprobs=0)])
def test_logprobs_that_would_not_be_shown_are_refused(flags: OutputFlags) -> None:
    with pytest.raises(UsageError, match="--logprobs"):
        flags.check()


def test_ids_may_have_blanks_around_commas() -> None:
    assert parse_ids("1, 22 ,3", "--prompt-ids") == (1, 22, 3)


@pytest.mark.parametrize("text", ["", "a", "1,,2", "-1", "1.5", "1 2", "٣", "99999999999"])
def test_what_is_no_list_of_ids_is_refused_by_its_flag(text: str) -> None:
    with pytest.raises(UsageError, match="--prompt-ids"):
        parse_ids(text, "--prompt-ids")


def test_layers_are_a_half_open_range() -> None:
    assert parse_layers("4:8") == (4, 8)


@pytest.mark.parametrize("text", ["", "4", "4:", ":8", "8:4", "4:4", "-1:4", "a:b", "1:2:3"])
def test_what_is_no_range_of_layers_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--layers"):
        parse_layers(text)
