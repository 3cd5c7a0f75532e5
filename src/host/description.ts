import { isDeepStrictEqual } from "node:util";
import { z } from "zod";
import type { Platform } from "../memory/guest-memory.js";

/*
 * The description of a machine: what a scenario says of it, and what a source tells its destination. It is checked with
 * this schema wherever it comes from.
 *
 * The texts of `describe` and `meta` are the fields' contract. docs/scenarios.md is made from them (`npm run docs:scenarios`),
 * and messages about a missing field quote them. A quantity's unit is that of the checked value: bytes, milliseconds. Scenarios
 * write it with a unit of their own (scenario/quantities.ts).
 */

const id = z.string().regex(/^[a-z0-9][a-z0-9._-]{0,31}$/, "lower-case letters, digits, '.', '_' and '-', at most 32");
/** The longest path of a UNIX socket (sun_path), without its terminating NUL. */
const socketPath = z.string().min(1).max(107);
const filePath = z.string().min(1).max(4096);

/*
 * Bounds of what a description can ask for: it may come from another machine. What this one has room for is looked at before
 * anything is allocated, too (cli/sites/emulated/check-memory.ts).
 */
/** As many as a PCI bus has functions. */
export const MAX_DEVICES = 256;
/** More than any machine's sockets times four. */
const MAX_IOMMUS = 64;
/** More than the largest machines of clouds have: 32 TiB. */
const MAX_MEMORY = 2 ** 45;

const memory = z
  .int()
  .min(2 ** 22)
  .max(MAX_MEMORY)
  .describe("guest RAM");

/** Unit of a rate. */
const MB_PER_S = "MB/s (10^6 bytes per second)";

/** The page-table formats of the emulated system IOMMU. */
export const IOMMU_FORMATS = ["amd-v1", "vtd-ss", "arm-s1"] as const;

const iommu = z.strictObject({
  id: id.describe("name of the IOMMU, unique in the machine"),
  format: z.enum(IOMMU_FORMATS).describe("format of its page tables"),
  dirtyTracking: z.boolean().default(true).describe("false: the IOMMU has no dirty bits, like older hardware"),
  iotlb: z.int().min(1).max(65536).default(256).meta({ description: "size of each device's IOTLB", unit: "entries" }),
});

const load = z
  .strictObject({
    rate: z
      .number()
      .min(0)
      .max(100_000)
      .default(50)
      .meta({ description: "rate at which the device writes guest memory; 0: idle", unit: MB_PER_S }),
    footprint: z
      .int()
      .min(4096)
      .max(2 ** 40)
      .describe(
        "size of its buffers in guest memory, which it writes over and over; at least 1M for nvme and dma-engine",
      ),
  })
  .describe("the device's workload");

const common = {
  id: id.describe("name of the device, unique in the machine"),
  load,
  p2pTargets: z
    .array(id)
    .max(MAX_DEVICES)
    .default([])
    .describe("devices that this one writes to over P2P: its row of the P2P table"),
  socket: socketPath
    .optional()
    .describe("vfio-user socket at which another process serves the device; relative to the scenario's file"),
  destinationSocket: socketPath
    .optional()
    .describe("socket of the device that takes over, for a migration without --to; requires socket"),
  serve: z
    .boolean()
    .optional()
    .describe("true: a process is started for the device at each end; excludes socket and iommu"),
  dma: z
    .enum(["auto", "messages"])
    .optional()
    .describe(
      "DMA of a device in another process: auto (used if absent) maps guest memory, messages asks for every read and write",
    ),
};

const filed = {
  within: filePath.optional().describe("folder that the file must lie in, with links followed; absent: any"),
};

const behind = {
  iommu: id
    .optional()
    .describe("IOMMU that the device is behind; required for a device in this process, refused for others"),
};

const dmaLogging = z
  .strictObject({
    pageSizes: z
      .array(z.int().min(4096))
      .min(1)
      .max(64)
      .default([4096, 65536, 2 * 2 ** 20])
      .describe("granules that the log supports"),
    maxRanges: z
      .int()
      .min(1)
      .max(1024)
      .default(8)
      .meta({ description: "most ranges that the log covers at a time", unit: "ranges" }),
    addressWidth: z
      .int()
      .min(32)
      .max(64)
      .default(52)
      .meta({ description: "width of the IOVAs that the log can cover", unit: "bits" }),
    readableWhen: z
      .enum(["always", "quiesced"])
      .default("always")
      .describe("when the log can be read; quiesced: only after the device stopped its DMA"),
  })
  .describe("limits of the device's DMA log");

const device = z.discriminatedUnion("model", [
  z
    .strictObject({ model: z.literal("mlx5"), ...common, ...behind, dmaLogging: dmaLogging.prefault({}) })
    .describe("a NIC's virtual function that logs its own DMA"),
  z.strictObject({ model: z.literal("nic"), ...common, ...behind }).describe("a NIC without a log"),
  z
    .strictObject({
      model: z.literal("blk"),
      ...common,
      ...behind,
      file: filePath.optional().describe("file that the disk reads; absent: one is made from the seed"),
      ...filed,
    })
    .describe("a disk without a log, which reads a file into guest memory over and over"),
  z
    .strictObject({
      model: z.literal("vgpu"),
      ...common,
      sharedTracker: z
        .boolean()
        .default(false)
        .describe("true: its hardware can mark a tracker that several mdevs share"),
      vram: z
        .int()
        .min(4096)
        .max(2 ** 30)
        .default(16 * 2 ** 20)
        .describe("video memory behind a BAR, which peers write to"),
    })
    .describe("an mdev that knows which pages it has pinned"),
  z
    .strictObject({
      model: z.literal("replay"),
      ...common,
      ...behind,
      load: z
        .strictObject({
          rate: z
            .number()
            .min(0)
            .max(0)
            .meta({ description: "always 0: the trace says what it writes", unit: MB_PER_S }),
          footprint: z.number().min(0).max(0).describe("always 0: the trace says where it writes"),
        })
        .prefault({ rate: 0, footprint: 0 })
        .describe("may be left out"),
      trace: filePath.describe("trace that it replays, relative to the scenario's file"),
      ...filed,
      owner: z
        .string()
        .min(1)
        .max(256)
        .optional()
        .describe("owner of the replayed writes in the trace; absent: the id"),
      dmaLogging: dmaLogging.prefault({}),
    })
    .describe("a device that writes what a trace recorded, when the trace has it; its load is left out"),
  z
    .strictObject({
      model: z.literal("nvme"),
      ...common,
      ...behind,
      file: filePath
        .optional()
        .describe("raw file with the disk's contents, which the destination must reach as well; absent: one is made"),
      ...filed,
    })
    .describe("an NVMe disk, driven by a driver on the vCPUs"),
  z
    .strictObject({
      model: z.literal("dma-engine"),
      ...common,
      ...behind,
      memory: z
        .int()
        .min(32 * 2 ** 10)
        .max(2 ** 28)
        .refine((bytes) => Number.isInteger(Math.log2(bytes)), "a power of two")
        .default(2 ** 20)
        .describe("size of BAR 2 (doorbells and local memory), a power of two"),
    })
    .describe("a DMA engine, driven by a driver on the vCPUs"),
  z
    .strictObject({ model: z.literal("vfio-user"), ...common })
    .describe("a device of another program's server; requires socket"),
]);

/** Bytes: more than any driver's rings, and buffers for as many requests as it keeps open. */
const MIN_DRIVEN_FOOTPRINT = 2 ** 20;

/**
 * Models that do what their guest's driver queues, as real ones do. The others have no driver: their workload is built in.
 */
const DRIVEN_MODELS = ["nvme", "dma-engine"] as const;
export type DrivenModelName = (typeof DRIVEN_MODELS)[number];

/** The model's name, of a device that does what a driver of the guest's queues; undefined of others. */
export function drivenModel({ model }: { readonly model: string }): DrivenModelName | undefined {
  return DRIVEN_MODELS.find((driven) => driven === model);
}

/**
 * Returns the platform that goes with a machine's IOMMUs: `virt` if one is an SMMU, which has its MSI window where a PC has
 * RAM, else `pc`.
 */
export function platformOf({ iommus }: Pick<MachineDescription, "iommus">): Platform {
  return iommus.some(({ format }) => format === "arm-s1") ? "virt" : "pc";
}

/** True for a device that runs in another process. */
export function isServed({ socket, serve }: Pick<z.output<typeof device>, "socket" | "serve">): boolean {
  return serve === true || socket !== undefined;
}

/** What one device's entry can't have. */
function problemsOf(
  entry: z.output<typeof device>,
  { iommus, vcpus }: { iommus: readonly { readonly id: string }[]; vcpus: { readonly count: number } },
): { field: string; message: string }[] {
  const behindOne = entry.model !== "vgpu" && entry.model !== "vfio-user";
  const driven = drivenModel(entry) === undefined ? [] : drivenProblems(entry, vcpus);
  if (!isServed(entry)) {
    const lacks = behindOne && !iommus.some((candidate) => candidate.id === entry.iommu);
    const which = behindOne && entry.iommu !== undefined ? `there is no IOMMU '${entry.iommu}'` : "it is behind none";
    const there = iommus.map(({ id }) => id).join(", ") || "none";
    const needsSocket = "it is for a device in another process: give a socket as well";
    return [
      ...driven,
      ...(entry.model === "vfio-user" ? [{ field: "socket", message: "is missing: where it is served" }] : []),
      ...(lacks ? [{ field: "iommu", message: `${which} (there are: ${there})` }] : []),
      ...(entry.destinationSocket === undefined ? [] : [{ field: "destinationSocket", message: needsSocket }]),
      ...(entry.dma === undefined ? [] : [{ field: "dma", message: needsSocket }]),
    ];
  }
  const isElsewhere = "it is in another process";
  return [
    ...(entry.model === "replay"
      ? [{ field: "model", message: `${isElsewhere}, and traces are replayed in this one` }]
      : []),
    ...driven,
    ...(entry.model === "vfio-user" && entry.serve === true
      ? [{ field: "serve", message: "someone else serves it: give its socket instead" }]
      : []),
    ...(behindOne && entry.iommu !== undefined
      ? [{ field: "iommu", message: `${isElsewhere}, behind no IOMMU of this machine` }]
      : []),
    ...(entry.model === "vgpu" && entry.sharedTracker
      ? [{ field: "sharedTracker", message: `${isElsewhere}, and shares no tracker` }]
      : []),
    ...(entry.model === "mlx5" && !isDeepStrictEqual(entry.dmaLogging, dmaLogging.parse({}))
      ? [{ field: "dmaLogging", message: `${isElsewhere}, and its log is as its server has made it` }]
      : []),
    ...(entry.p2pTargets.length > 0 ? [{ field: "p2pTargets", message: `${isElsewhere}, and reaches no peer` }] : []),
    ...(entry.serve === true && entry.socket !== undefined
      ? [{ field: "socket", message: "a process is started for it (serve): leave out one of the two" }]
      : []),
    ...(entry.serve === true && entry.destinationSocket !== undefined
      ? [{ field: "destinationSocket", message: "a process is started for it (serve): leave out one of the two" }]
      : []),
  ];
}

/** What the guest's driver of a device needs. */
function drivenProblems(
  { p2pTargets, load }: z.output<typeof device>,
  { count }: { readonly count: number },
): { field: string; message: string }[] {
  return [
    ...(count > 0 ? [] : [{ field: "model", message: "its driver runs on a vCPU, and there is none (vcpus.count)" }]),
    ...(load.footprint >= MIN_DRIVEN_FOOTPRINT
      ? []
      : [
          {
            field: "load",
            message: `its driver's rings and buffers take a footprint of ${MIN_DRIVEN_FOOTPRINT / 2 ** 20}M at least`,
          },
        ]),
    ...(p2pTargets.length > 0 ? [{ field: "p2pTargets", message: "its driver queues nothing for peers" }] : []),
  ];
}

/** Checks the description of an emulated machine, and fills in defaults. Sizes are bytes, rates 10^6 bytes per second. */
export const machineSchema = z
  .strictObject({
    memory,
    vcpus: z
      .strictObject({
        count: z.int().min(0).max(64).default(2).describe("number of vCPUs; nvme and dma-engine need at least one"),
        rate: z
          .number()
          .min(0)
          .max(100_000)
          .default(20)
          .meta({ description: "rate at which each vCPU writes guest memory; 0: idle", unit: MB_PER_S }),
        footprint: z
          .int()
          .min(4096)
          .max(2 ** 40)
          .default(16 * 2 ** 20)
          .describe("size of the guest memory that each vCPU writes over and over"),
      })
      .describe("the vCPUs and their workload"),
    fill: z
      .number()
      .min(0)
      .max(1)
      .default(0.5)
      .describe("share of RAM that holds random data at the start; the rest is zero"),
    seed: z.int().min(0).max(0xffffffff).default(1).describe("seed of that data, and of the disks that are made"),
    iommus: z.array(iommu).max(MAX_IOMMUS).default([]).describe("system IOMMUs; arm-s1 excludes the other formats"),
    devices: z.array(device).max(MAX_DEVICES).describe("passed-through devices"),
    deviceThreads: z
      .int()
      .min(1)
      .max(16)
      .default(1)
      .meta({ description: "threads over which the devices in this process are spread", unit: "threads" }),
    p2p: z
      .enum(["all", "none", "table"])
      .default("table")
      .describe("peer-to-peer DMA that the machine allows: every pair, none, or the table of p2pTargets"),
  })
  .superRefine((machine, context) => {
    const seen = new Set<string>();
    machine.devices.forEach((entry, index) => {
      if (seen.has(entry.id)) {
        context.addIssue({ code: "custom", path: ["devices", index, "id"], message: `'${entry.id}' is used twice` });
      }
      seen.add(entry.id);
      for (const { field, message } of problemsOf(entry, machine)) {
        context.addIssue({ code: "custom", path: ["devices", index, field], message });
      }
    });
    if (new Set(machine.iommus.map(({ format }) => format === "arm-s1")).size > 1) {
      context.addIssue({ code: "custom", path: ["iommus"], message: "no machine has an SMMU and an x86 IOMMU" });
    }
    machine.devices.forEach((entry, index) => {
      for (const target of entry.p2pTargets) {
        const peer = machine.devices.find((candidate) => candidate.id === target);
        if (peer !== undefined && !isServed(peer) && drivenModel(peer) === undefined) continue;
        const message =
          peer === undefined
            ? `there is no device '${target}'`
            : `'${target}' ${isServed(peer) ? "is in another process: no peer reaches it" : "has no memory for peers"}`;
        context.addIssue({ code: "custom", path: ["devices", index, "p2pTargets"], message });
      }
    });
  });

/**
 * Checks the description of a machine of passed-through devices. The destination's machine must match it. The workload of the
 * devices belongs to the guest and is not described.
 */
export const passthroughSchema = z.strictObject({
  kind: z.literal("passthrough"),
  memory,
  platform: z.enum(["pc", "virt"]),
  vcpus: z.int().min(0).max(4096),
  devices: z
    .array(
      z.strictObject({
        /** Names the device's place in the machine on both sides; which device of the host it is, each side knows. */
        id,
        /** The kernel driver that saved its state, and must load it. */
        model: z.string().regex(/^[A-Za-z0-9_-]{1,64}$/, "a driver's name"),
      }),
    )
    .max(MAX_DEVICES),
});

/** A machine of passed-through devices. */
export type PassthroughDescription = z.output<typeof passthroughSchema>;

/** A machine as it can be built. */
export type MachineDescription = z.output<typeof machineSchema>;
/** A device of a described machine. */
export type DeviceDescription = MachineDescription["devices"][number];
/** A system IOMMU of a described machine. */
export type IommuDescription = MachineDescription["iommus"][number];
/** A device of one of Dirtmap's own models. */
export type ModelledDescription = Exclude<DeviceDescription, { model: "vfio-user" }>;

/** True for a device that runs in this process: it has a model then. */
export function runsHere(entry: DeviceDescription): entry is ModelledDescription {
  return !isServed(entry);
}
/** The models that a description can name; `vfio-user` is a device that another process serves. */
export type DeviceModelName = DeviceDescription["model"];
/** The page-table formats that an IOMMU can have. */
export type IommuFormatName = (typeof IOMMU_FORMATS)[number];

/** Files that a description names, by device. */
export type NamedFiles = ReadonlyMap<string, string>;

/**
 * A description that came from another machine, as it may be acted on: without its paths, which are that machine's. What
 * runs in another process there does so here; at which socket, and with which file, is for this machine's operator to say.
 * @returns it, and by device the files that it named, for a destination that has them under the same names
 */
export function withoutPaths(description: MachineDescription): {
  readonly description: MachineDescription;
  readonly named: NamedFiles;
} {
  const named = new Map<string, string>();
  const devices = description.devices.map((device): DeviceDescription => {
    const { socket, destinationSocket: _there, ...kept } = device;
    const bare = { ...kept, ...(socket === undefined ? {} : { socket: UNNAMED }) };
    if (bare.model === "replay") {
      named.set(bare.id, bare.trace);
      const { within: _within, ...replay } = bare;
      return { ...replay, trace: UNNAMED };
    }
    if (bare.model !== "blk" && bare.model !== "nvme") return bare;
    const { file, within: _within, ...disk } = bare;
    if (file !== undefined) named.set(disk.id, file);
    return disk;
  });
  return { description: { ...description, devices }, named };
}

/** Stands for a path of another machine: nothing has this name. */
const UNNAMED = "";
