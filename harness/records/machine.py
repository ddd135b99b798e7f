"""The machine of a run at the moment it was measured, as far as it decides how far its numbers can be trusted."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from harness.contracts import UnitCosts
from harness.records.record import Positive, Record


class SensorRecord(Record):
    """One kind of energy sensor.

    Attributes:
        name: ``nvml``, ``rapl``, ``soc``, or a third party's.
        unavailable: why it cannot measure work on this device, with the remedy; ``None`` if it can.
        stated_period_s: how often it ticks by its documentation. period_s: measured by polling its counter.
        period_reason: why the period was not measured.
    """

    name: str
    unavailable: str | None = None
    stated_period_s: float | None = None
    period_s: float | None = None
    period_reason: str | None = None


class MachineRecord(Record):
    """Facts that decide which metrics can be trusted; ``None`` means not known.

    Attributes:
        device, dtype: what the measurements were made with.
        logical_cores: of the machine. usable_cores: this process may run on. quota_cores: cores' worth of time its
            control group allows.
        threads, interop_threads: of torch.
        hypervisor: its name, ``unnamed`` when it does not give one, ``None`` when nothing hints at one.
        clock_mhz: present clock of each usable core. clock_source: ``cpufreq`` or ``cpuinfo``.
        governors: different frequency governors of the usable cores.
        load_span_s: how long the cores were watched, while the other measurements ran. load_cores: cores watched.
        own_cpu_s, foreign_cpu_s, stolen_cpu_s: CPU seconds of this process, of everything else on these cores, and
            those that the hypervisor gave to others.
        timer, timer_resolution_s, timer_backward_steps: the clock behind every latency.
        bandwidth_bytes_per_s: weight bytes per second of matrix × vector. bandwidth_kernel, bandwidth_buffer_bytes,
            bandwidth_cache_bytes, bandwidth_limited_by: see ``BandwidthReading``.
        gemm_flops_per_s, gemm_size: best matrix × matrix, and the size it was reached at.
        dispatch_s: one torch operation without work.
        meter: source of the meter in use. meter_description: its own words. meter_measured: a sensor measures.
        sensors: every kind of energy sensor that was looked for.
        scores_missing: which scores cannot be computed, why, and what helps.
        missing: what is not known → why, where there is more to say than that it is hidden.
    """

    device: str
    dtype: str
    logical_cores: int | None = None
    usable_cores: int | None = None
    quota_cores: float | None = None
    threads: int | None = None
    interop_threads: int | None = None
    hypervisor: str | None = None
    clock_mhz: tuple[float, ...] | None = None
    clock_source: str | None = None
    governors: tuple[str, ...] | None = None
    load_span_s: float | None = None
    load_cores: int | None = None
    own_cpu_s: float | None = None
    foreign_cpu_s: float | None = None
    stolen_cpu_s: float | None = None
    timer: str | None = None
    timer_resolution_s: float | None = None
    timer_backward_steps: int | None = None
    bandwidth_bytes_per_s: float | None = None
    bandwidth_kernel: str | None = None
    bandwidth_buffer_bytes: int | None = None
    bandwidth_cache_bytes: int | None = None
    bandwidth_limited_by: str | None = None
    gemm_flops_per_s: float | None = None
    gemm_size: int | None = None
    dispatch_s: float | None = None
    meter: str = "none"
    meter_description: str = ""
    meter_measured: bool = False
    sensors: tuple[SensorRecord, ...] = ()
    scores_missing: tuple[str, ...] = ()
    missing: dict[str, str] = Field(default_factory=dict)

    @property
    def foreign_share(self) -> float | None:
        """Share of the watched cores' time that other processes used, 0…1."""
        return self._share(self.foreign_cpu_s)

    @property
    def stolen_share(self) -> float | None:
        """Share of the watched cores' time that the hypervisor gave away, 0…1."""
        return self._share(self.stolen_cpu_s)

    @property
    def room(self) -> float | None:
        """Cores' worth of time this process may use: its usable cores, or its quota where that is less."""
        known = [float(cores) for cores in (self.usable_cores, self.quota_cores) if cores is not None]
        return min(known, default=None)

    def sensor(self, name: str) -> SensorRecord | None:
        """Return one sensor by name, ``None`` if it was not looked for."""
        return next((sensor for sensor in self.sensors if sensor.name == name), None)

    def _share(self, seconds: float | None) -> float | None:
        if seconds is None or not self.load_span_s or not self.load_cores:
            return None
        return seconds / (self.load_span_s * self.load_cores)


class DraftTimes(Record):
    """Duration of drafting beside layers, in seconds.

    Attributes:
        check_s: one check of the strategy, asked for or made inside compiled layers.
        read_s: taking the token that an exit drafts, shortcut included, and asking there what is asked only where its
            checks inside layers say so; next to nothing where a check has read it.
    """

    check_s: float
    read_s: float


class UnitTimes(Record):
    """Measured durations of a model in one weights format, in seconds.

    Attributes:
        positions: that the timed tokens attended to. rows: of the pass that several tokens shared.
        layer_s: one decoder layer for one token. head_s: the LM head for one, its best token included.
        layer_row_s, head_row_s: the same for one more row of the same pass.
        pass_s: rows → a pass of them through all layers and the LM head, never less than one of fewer.
        drafts: by who drafts: the strategy's class with the heads that it reads, and what reads its drafts.
    """

    positions: Positive
    rows: Positive
    layer_s: float
    head_s: float
    layer_row_s: float
    head_row_s: float
    pass_s: dict[int, float] = Field(default_factory=dict)
    drafts: dict[str, DraftTimes] = Field(default_factory=dict)

    def costs(self, draft: DraftTimes, asked_at: Sequence[int] = ()) -> UnitCosts:
        """Return the costs of decoding, in seconds, with what drafting adds by a strategy asked at some layers."""
        return UnitCosts(
            layer=self.layer_s,
            head=self.head_s,
            shortcut=0.0,
            source=f"seconds on this machine, {self.positions} positions read",
            draft_head=draft.read_s,
            check=draft.check_s,
            asked_at=tuple(asked_at),
            layer_row=self.layer_row_s,
            head_row=self.head_row_s,
            passes=tuple(sorted(self.pass_s.items())),
        )
