/*
 * What applies if neither the operator nor the caller says otherwise: the one table. The command line prints it with units, scenarios
 * and the library fill in what was left out, and the dashboard assumes it. It imports nothing, since `--help` reads it.
 *
 * A test types every default that `--help` prints (cli/defaults.test.ts), and refuses a second literal beside this table.
 */
export const DEFAULTS = {
  scenario: "mixed",
  host: "emulated",

  // How devices are tracked.
  policy: "iommu-first",
  unmeasured: "refuse",
  domain: "per-device",
  untracked: "everything",
  design: "split",

  // A migration. Its downtime limit is QEMU's (`migrate_set_parameter downtime-limit`).
  downtimeLimitMs: 300,
  /** Bytes per second. */
  bandwidth: Number.POSITIVE_INFINITY,
  channels: 2,
  /** Pre-copy rounds at most. */
  maxRounds: 30,
  verify: "after",
  /** How long the workload runs on at the destination before it is checked. */
  runAfterMs: 500,
  /** How long an undecided source waits for the operator: until told. */
  decideMs: Number.POSITIVE_INFINITY,

  // A migration that is only estimated: bytes per second of a common link (10 Gbit/s), and what a read takes if none was seen.
  linkBandwidth: 1.25e9,
  readMs: 1,

  // Watching a machine.
  observeMs: 2000,
  observeIntervalMs: 50,
  recordMs: 10_000,
  recordIntervalMs: 100,
  viewIntervalMs: 1000,

  // Benchmarks.
  /** Memory that is mapped for devices of which no scenario says how much there is. */
  mappedBytes: 256 * 2 ** 20,
  /** Of the designs: some minutes, or with `--quick` about one. `migrate`: devices of machines that are migrated as a whole. */
  designs: {
    full: { devices: [1, 2, 4, 8, 16, 32, 64], migrate: [2], repetitions: 7, memoryBytes: 2 ** 30 },
    quick: { devices: [1, 8, 64], migrate: [0], repetitions: 3, memoryBytes: 2 ** 28 },
  },

  // Addresses that are listened on.
  dashboard: "127.0.0.1:7780",
  destination: "tcp://127.0.0.1:7700",

  // Certificates for trying TLS out.
  certificateFolder: "certs",
  certificateHosts: ["localhost", "127.0.0.1", "::1"],
  certificateDays: 30,
} as const;
