import type { FakeQemu } from "../qmp/fake-qemu.test.helper.js";

/*
 * Migrations as QEMU 11.1.3 told them: excerpts of recordings, of a guest of 48 MiB with an mtty device on vfio-pci. A fake tells
 * them again, at the pace at which it is asked.
 */

/** QEMU tells something by itself, at a time of its clock; or this is what it answers to query-migrate next. */
export type Step =
  | { readonly event: string; readonly data?: object; readonly atMs: number }
  | { readonly info: object };

const DEVICE_PATH = "/machine/peripheral/mtty0";
const MEMORY_BYTES = 50_864_128;

const status = (atMs: number, name: string): Step => ({ event: "MIGRATION", data: { status: name }, atMs });
const device = (atMs: number, state: string): Step => ({
  event: "VFIO_MIGRATION",
  data: { "device-state": state, "device-id": "mtty0", "qom-path": DEVICE_PATH },
  atMs,
});

interface Ram {
  readonly pass: number;
  readonly left: number;
  readonly sent: number;
  readonly normal: number;
  readonly zero: number;
  /** Pages per second. */
  readonly dirty?: number;
}

/** An answer with memory. @param others fields besides */
export function answer(name: string, { pass, left, sent, normal, zero, dirty = 0 }: Ram, others: object = {}): Step {
  const ram = {
    ...{ total: MEMORY_BYTES, remaining: left, transferred: sent, normal, duplicate: zero, "page-size": 4096 },
    ...{ "dirty-sync-count": pass, "dirty-pages-rate": dirty },
  };
  return { info: { status: name, ram, ...others } };
}

const ofSystem = (remaining: number, downtime = 2000, device = 24) => ({
  ...{ remaining, "expected-downtime": downtime, vfio: { transferred: device } },
});

/** Until memory is sent. */
export const BEGINS: readonly Step[] = [
  { info: {} },
  { info: {} },
  status(9727, "setup"),
  { info: { status: "setup" } },
  device(9876, "pre-copy"),
  status(10_053, "active"),
];

const COMPLETES: readonly Step[] = [
  ...BEGINS,
  answer("active", { pass: 1, left: 47_452_160, sent: 216_611, normal: 51, zero: 782 }, ofSystem(50_864_188)),
  answer("active", { pass: 1, left: 9_814_016, sent: 382_413, normal: 75, zero: 9947 }, ofSystem(16_773_156)),
  answer("active", { pass: 1, left: 0, sent: 549_960, normal: 102, zero: 12_316 }, ofSystem(774_180)),
  { event: "MIGRATION_PASS", data: { pass: 2 }, atMs: 10_737 },
  answer("active", { pass: 2, left: 204_800, sent: 636_488, normal: 102, zero: 12_316 }, ofSystem(204_860, 211)),
  device(10_784, "pre-copy-p2p-prepare"),
  device(10_858, "pre-copy-p2p"),
  device(10_875, "stop-copy"),
  { event: "STOP", atMs: 10_886 },
  status(10_909, "device"),
  status(11_064, "completed"),
];

export const RECORDED = {
  /** QEMU is there afterwards, and has its last figures. */
  completed: [
    ...COMPLETES,
    device(11_099, "stop"),
    answer(
      "completed",
      { pass: 2, left: 0, sent: 791_385, normal: 138, zero: 12_331 },
      { vfio: { transferred: 60 }, "total-time": 1333, downtime: 312 },
    ),
  ],
  /** Whoever started it ends it at its last event. */
  completedAndGone: COMPLETES,
  cancelled: [
    ...BEGINS,
    answer("active", { pass: 1, left: 50_114_560, sent: 4949, normal: 1, zero: 182 }, ofSystem(50_597_924)),
    answer("active", { pass: 1, left: 40_062_976, sent: 212_358, normal: 46, zero: 2592 }, ofSystem(40_366_116)),
    status(11_288, "cancelling"),
    device(11_333, "running"),
    status(11_337, "cancelled"),
    { info: { status: "cancelled" } },
  ],
  /** With pause-before-switchover; the destination is killed in the pause. */
  failed: [
    ...BEGINS,
    answer("active", { pass: 1, left: 28_315_648, sent: 238_184, normal: 46, zero: 5459 }, ofSystem(50_864_188)),
    { event: "MIGRATION_PASS", data: { pass: 2 }, atMs: 10_761 },
    device(10_777, "pre-copy-p2p-prepare"),
    device(10_784, "pre-copy-p2p"),
    device(10_786, "stop-copy"),
    { event: "STOP", atMs: 10_788 },
    status(10_792, "pre-switchover"),
    answer("pre-switchover", { pass: 2, left: 20_480, sent: 501_209, normal: 95, zero: 12_323 }, ofSystem(20_540, 6)),
    status(11_121, "device"),
    status(11_147, "failing"),
    device(11_154, "running"),
    { event: "RESUME", atMs: 11_162 },
    device(11_168, "running-p2p"),
    device(11_174, "running"),
    status(11_180, "failed"),
    {
      info: {
        status: "failed",
        "error-desc": "Failed to save iterable device state: Unable to write to socket: Broken pipe",
      },
    },
  ],
} as const satisfies Record<string, readonly Step[]>;

/** A migration that never ends: a guest that dirties as much as is sent, in so many passes. */
export function endless(passes: number): readonly Step[] {
  const work = 400 * 4096;
  return [
    ...BEGINS,
    ...Array.from({ length: passes }, (_, i) =>
      answer(
        "active",
        { pass: i + 1, left: work, sent: 300_000 + i * work, normal: 100 + i * 400, zero: 12_000, dirty: 400 },
        ofSystem(work),
      ),
    ),
  ];
}

/** What a {@link FakeQemu} is asked about its guest besides its migration. */
export function asGuest(fake: FakeQemu, { events = true, tellsStates = true } = {}): FakeQemu {
  const parameters = { "downtime-limit": 300, "max-bandwidth": 134_217_728, "avail-switchover-bandwidth": 0 };
  return fake
    .answer("query-name", { name: "vm7" })
    .answer("query-uuid", { UUID: "4f2c6b1e-6d3f-4c3b-9d86-0d5b6f1f3a77" })
    .answer("query-status", { running: true, status: "running" })
    .answer("query-memory-size-summary", { "base-memory": MEMORY_BYTES })
    .answer("query-migrate-capabilities", [{ capability: "events", state: events }])
    .answer("query-migrate-parameters", parameters)
    .answer("qom-get", tellsStates)
    .answer("query-migrate", {})
    .with("qom-list", ({ arguments: { path } }) =>
      path === "/machine/peripheral" ? [{ name: "mtty0", type: "child<vfio-pci>" }] : [],
    );
}

/**
 * Tells a migration: each question takes one answer further, and has the events that follow it behind it.
 * @param ends whether QEMU ends behind the last step; else its last answer stays
 */
export function play(fake: FakeQemu, steps: readonly Step[], { ends = false } = {}): FakeQemu {
  const rest = [...steps];
  let last: object = {};
  return fake.with("query-migrate", () => {
    const next = rest[0];
    if (next !== undefined && "info" in next) {
      rest.shift();
      last = next.info;
    }
    // Behind the answer.
    queueMicrotask(() => {
      for (let step = rest[0]; step !== undefined && "event" in step; step = rest[0]) {
        rest.shift();
        fake.event(step.event, step.data, step.atMs);
      }
      if (ends && rest.length === 0) fake.hangUp();
    });
    return last;
  });
}
