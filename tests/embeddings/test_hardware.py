import json

import pytest
import torch
from pydantic import ValidationError

from embeddings.encoders import TextEncoder, TextShape, initialise_
from embeddings.hardware import (
    ROUNDS,
    HardwareChoice,
    choose_by_rule,
    hardware_choice,
    is_crowded,
    probe_hardware,
)
from embeddings.precision import choose_precision
from embeddings.processor import Processor, read_processor

FAST = Processor(
    model="made up", logical_cores=8, physical_cores=4, flags=frozenset({"fpu", "avx512_bf16"})
)
PLAIN = Processor(model="old", logical_cores=2, physical_cores=2, flags=frozenset({"fpu"}))


class Stopwatch:
    """Seconds by arithmetic and threads; ``noise`` is added by number of the call."""

    def __init__(self, float32=1.0, bfloat16=0.25, by_threads=None, noise=None):
        self.seconds = {torch.float32: float32, torch.bfloat16: bfloat16}
        self.by_threads = by_threads or {1: 4.0, 2: 2.0, 4: 1.0, 8: 1.0}
        self.noise = noise or {}
        self.calls = []

    def __call__(self, threads, dtype):
        self.calls.append((threads, dtype))
        exact = 0.01 * self.seconds[dtype] * self.by_threads[threads]
        return exact + self.noise.get(len(self.calls) - 1, 0.0)


def probe(stopwatch, processor=FAST, **settings):
    return probe_hardware(processor, measure=stopwatch, crowded=lambda: False, **settings)


@pytest.fixture
def measuring(monkeypatch, tmp_path):
    """Probes with a made-up stopwatch and a cache folder of its own."""
    monkeypatch.delenv("ADTOWER_PROBE")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def choose(stopwatch, **settings):
        settings = {"processor": FAST, "folder": tmp_path / "cache", **settings}
        return hardware_choice(measure=stopwatch, crowded=lambda: False, **settings)

    return choose


def test_where_the_stopwatch_agrees_the_rule_is_the_answer():
    for processor in (FAST, PLAIN):
        measured, rule = probe(Stopwatch(), processor), choose_by_rule(processor)
        assert (measured.threads, measured.dtype) == (rule.threads, rule.dtype)
    assert choose_by_rule(FAST).dtype == "bfloat16"
    assert choose_by_rule(FAST).threads == 4
    assert choose_by_rule(PLAIN).dtype == "float32"


@pytest.mark.parametrize(
    ("gain", "dtype"), [(0.5, "float32"), (1.19, "float32"), (1.21, "bfloat16")]
)
def test_bfloat16_has_to_be_clearly_faster(gain, dtype):
    choice = probe(Stopwatch(bfloat16=1 / gain))
    assert choice.dtype == dtype
    assert f"{gain:.2f} times as fast as float32" in choice.reasons[1]


def test_without_the_processors_word_bfloat16_is_not_even_timed():
    stopwatch = Stopwatch(bfloat16=0.001)
    assert probe(stopwatch, PLAIN).dtype == "float32"
    assert {dtype for _, dtype in stopwatch.calls} == {torch.float32}


@pytest.mark.parametrize(
    ("by_threads", "threads"),
    [
        ({1: 4.0, 4: 1.0, 8: 0.85}, 4),
        ({1: 4.0, 4: 1.0, 8: 0.8}, 8),
        ({1: 0.5, 4: 1.0, 8: 2.0}, 1),
    ],
)
def test_another_number_of_threads_has_to_be_clearly_faster(by_threads, threads):
    assert probe(Stopwatch(by_threads=by_threads)).threads == threads


def test_candidates_take_turns_and_the_best_time_counts():
    # Every second turn is disturbed, the first as well.
    noise = {call: 0.02 for call in range(6 * ROUNDS) if call // 6 % 2 == 0}
    quiet, disturbed = Stopwatch(), Stopwatch(noise=noise)
    assert probe(quiet).timings_ms == probe(disturbed).timings_ms
    settings = quiet.calls[:6]
    assert len(set(settings)) == 6
    assert quiet.calls == settings * (len(quiet.calls) // 6)


def test_the_first_turn_warms_up_and_a_slow_machine_is_timed_once_more():
    stopwatch = Stopwatch(float32=100.0, bfloat16=100.0, noise={0: -0.9})
    assert probe(stopwatch, PLAIN).timings_ms == {"float32 x 1": 4000.0, "float32 x 2": 2000.0}
    assert len(stopwatch.calls) == 4


def test_probing_leaves_torchs_threads_as_they_were():
    before = torch.get_num_threads()

    def measure(threads, dtype):
        torch.set_num_threads(threads)
        return 0.1

    probe(measure)
    assert torch.get_num_threads() == before


def test_beside_busy_neighbours_the_rule_decides():
    def measure(threads, dtype):
        raise AssertionError("timed")

    choice = probe_hardware(FAST, measure=measure, crowded=lambda: True)
    assert (choice.threads, choice.dtype) == (4, "bfloat16")
    assert "the machine was busy" in choice.describe()
    assert choice.timings_ms == {}


@pytest.mark.parametrize(("running", "crowded"), [(1, False), (2, False), (3, True)])
def test_crowded_means_that_others_run(tmp_path, monkeypatch, running, crowded):
    (tmp_path / "loadavg").write_text(f"9.00 9.00 9.00 {running}/500 1234\n")
    monkeypatch.setattr("embeddings.hardware.LOADAVG", tmp_path / "loadavg")
    monkeypatch.setattr("embeddings.hardware.os.cpu_count", lambda: 8)
    monkeypatch.setattr("embeddings.hardware.time.sleep", lambda seconds: None)
    assert is_crowded() is crowded


def test_threads_that_were_fixed_are_the_only_ones_timed(measuring, monkeypatch):
    stopwatch = Stopwatch(by_threads={2: 1.0, 3: 1.0})
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    assert measuring(stopwatch).threads == 3
    assert measuring(stopwatch, threads=2).threads == 2
    assert {threads for threads, _ in stopwatch.calls} == {2, 3}


def test_a_machine_is_timed_once(measuring):
    first, never = measuring(Stopwatch()), Stopwatch(bfloat16=9.0)
    assert first.dtype == "bfloat16"
    assert measuring(never) == first
    assert never.calls == []


def test_a_machine_is_timed_anew_when_asked(measuring, monkeypatch):
    assert measuring(Stopwatch()).dtype == "bfloat16"
    monkeypatch.setenv("ADTOWER_PROBE", "anew")
    assert measuring(Stopwatch(bfloat16=9.0)).dtype == "float32"
    monkeypatch.delenv("ADTOWER_PROBE")
    assert measuring(Stopwatch()).dtype == "float32"


@pytest.mark.parametrize("change", ["processor", "threads", "torch"])
def test_another_machine_has_a_record_of_its_own(measuring, monkeypatch, change):
    measuring(Stopwatch())
    stopwatch = Stopwatch(bfloat16=9.0)
    if change == "torch":
        monkeypatch.setattr("torch.__version__", "99.0")
        assert measuring(stopwatch).torch_version == "99.0"
    elif change == "threads":
        measuring(stopwatch, threads=2)
    else:
        measuring(stopwatch, processor=PLAIN)
    assert stopwatch.calls


def test_a_damaged_record_is_replaced(measuring, tmp_path):
    first = measuring(Stopwatch())
    (record,) = (tmp_path / "cache").glob("hardware-*.json")
    record.write_text(record.read_text()[:40])
    assert measuring(Stopwatch()) == first
    assert json.loads(record.read_text())["dtype"] == "bfloat16"


def test_what_cannot_be_recorded_is_not_timed(measuring, tmp_path):
    (tmp_path / "file").write_text("")
    stopwatch = Stopwatch(bfloat16=9.0)
    assert measuring(stopwatch, folder=tmp_path / "file" / "cache") == choose_by_rule(FAST)
    assert stopwatch.calls == []


def test_the_probe_can_be_switched_off(measuring, monkeypatch):
    monkeypatch.setenv("ADTOWER_PROBE", "off")
    stopwatch = Stopwatch(bfloat16=9.0)
    assert measuring(stopwatch) == choose_by_rule(FAST)
    assert stopwatch.calls == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("ADTOWER_PROBE", "yes"), ("OMP_NUM_THREADS", "0"), ("OMP_NUM_THREADS", "many")],
)
def test_settings_that_make_no_sense_are_refused_by_name(measuring, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name}='{value}'"):
        measuring(Stopwatch())


def test_no_threads_are_refused(measuring):
    with pytest.raises(ValueError, match="threads=0 must be at least 1"):
        measuring(Stopwatch(), threads=0)


def test_a_choice_survives_a_round_trip_through_json():
    choice = probe(Stopwatch())
    assert HardwareChoice.model_validate_json(choice.to_json()) == choice
    with pytest.raises(ValidationError, match="dtype"):
        HardwareChoice.model_validate_json(choice.to_json().replace("bfloat16", "float16"))


def small_encoder(scale=1.0):
    shape = TextShape(vocabulary=50, width=32, layers=2, heads=4, feed_forward=64, positions=16)
    encoder = TextEncoder(shape)
    initialise_(encoder, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for layer in encoder.layers:
            for parameter in layer.parameters():
                parameter.mul_(scale)
    return encoder


def test_bfloat16_needs_speed_and_an_encoder_that_stays_accurate():
    cpu, fast = torch.device("cpu"), probe(Stopwatch())
    slow = probe(Stopwatch(bfloat16=0.9))
    assert choose_precision(small_encoder(), cpu, hardware=fast).dtype == torch.bfloat16
    refused = choose_precision(small_encoder(), cpu, hardware=slow)
    assert refused.dtype == torch.float32
    assert "1.11 times as fast" in refused.reason
    rough = choose_precision(small_encoder(scale=80.0), cpu, hardware=fast)
    assert rough.dtype == torch.float32
    assert "bfloat16 vectors have cosine" in rough.reason


def test_cores_are_counted_once_and_only_those_at_hand(tmp_path, monkeypatch):
    blocks = [
        f"processor\t: {n}\nmodel name\t: Some CPU\nphysical id\t: 0\n"
        f"core id\t\t: {n % 4}\nflags\t\t: fpu amx_bf16\n"
        for n in range(8)
    ]
    (tmp_path / "cpuinfo").write_text("\n".join(blocks) + "\n")
    (tmp_path / "max").write_text("max 100000\n")
    (tmp_path / "half").write_text("150000 100000\n")

    def read(cores, quota):
        monkeypatch.setattr("embeddings.processor.os.sched_getaffinity", lambda pid: cores)
        found = read_processor(tmp_path / "cpuinfo", tmp_path / quota)
        assert found.model == "Some CPU"
        assert found.flags == {"fpu", "amx_bf16"}
        return found.logical_cores, found.physical_cores

    assert read(set(range(8)), "max") == (8, 4)
    assert read({0, 4, 5}, "max") == (3, 2)
    assert read(set(range(8)), "half") == (2, 2)
    assert read(set(range(8)), "nowhere") == (8, 4)


def test_a_system_that_tells_nothing_still_has_cores(tmp_path):
    found = read_processor(tmp_path / "cpuinfo", tmp_path / "cpu.max")
    assert found.flags == frozenset()
    assert found.logical_cores == found.physical_cores >= 1
    assert found.model
