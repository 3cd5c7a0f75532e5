import { isDeepStrictEqual } from "node:util";
import { z } from "zod";
import type { Platform } from "../memory/guest-memory.js";

/*
 * The description of a machine: what a scenario says of it, and what a source tells its destination. It is checked with
 * this schema wherever it comes from.
 */

const id = z.string().regex(/^[a-z0-9][a-z0-9._-]{0,31}$/, "lower-case letters, digits, '.', '_' and '-', at most 32");

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

/** Bytes of RAM. */
const memory = z
  .int()
  .min(2 ** 22)
  .max(MAX_MEMORY);

/** The page-table formats of the emulated system IOMMU, and an IOMMU without dirty tracking. */
export const IOMMU_FORMATS = ["amd-v1", "vtd-ss", "arm-s1"] as const;

const iommu = z.strictObject({
  id,
  format: z.enum(IOMMU_FORMATS),
  /** false: an IOMMU that can't track (older hardware). */
  dirtyTracking: z.boolean().default(true),
  /** Entries of each device's IOTLB. */
  iotlb: z.int().min(1).max(65536).default(256),
});

/** How much DMA a device's workload does, and where in guest memory. */
const load = z.strictObject({
  /** Megabytes (10^6) per second that the device writes; 0: idle. */
  rate: z.number().min(0).max(100_000).default(50),
  /** Size of its buffers in guest memory: what it can dirty over and over. */
  footprint: z
    .int()
    .min(4096)
    .max(2 ** 40),
});

const common = {
  id,
  load,
  /** The P2P table's row: devices that this one writes to over P2P. */
  p2pTargets: z.array(id).max(MAX_DEVICES).default([]),
  /** It runs in another process, which serves it at this vfio-user socket. */
  socket: z.string().min(1).max(107).optional(),
  /** The socket of the device that takes over from it where the machine is migrated to. */
  destinationSocket: z.string().min(1).max(107).optional(),
  /** It runs in another process, which is started for it, at both ends. */
  serve: z.boolean().optional(),
  /** Of a device in another process, auto (the default): it maps the guest's memory; messages: it asks for every read and write. */
  dma: z.enum(["auto", "messages"]).optional(),
};

/** Of a device with a file. */
const filed = {
  /** A folder that the file must lie in, links followed: a destination's, of what it lets a source name. */
  within: z.string().min(1).max(4096).optional(),
};

/** Of devices in this process: the IOMMU that they are behind. */
const behind = { iommu: id.optional() };

const dmaLogging = z.strictObject({
  /** Page sizes that its log supports, in bytes. */
  pageSizes: z
    .array(z.int().min(4096))
    .min(1)
    .max(64)
    .default([4096, 65536, 2 * 2 ** 20]),
  maxRanges: z.int().min(1).max(1024).default(8),
  addressWidth: z.int().min(32).max(64).default(52),
  readableWhen: z.enum(["always", "quiesced"]).default("always"),
});

const device = z.discriminatedUnion("model", [
  z.strictObject({ model: z.literal("mlx5"), ...common, ...behind, dmaLogging: dmaLogging.prefault({}) }),
  z.strictObject({ model: z.literal("nic"), ...common, ...behind }),
  z.strictObject({
    model: z.literal("blk"),
    ...common,
    ...behind,
    /** The file behind the disk; absent: one is made in the temporary directory from the seed. */
    file: z.string().min(1).max(4096).optional(),
    ...filed,
  }),
  z.strictObject({
    model: z.literal("vgpu"),
    ...common,
    /** The mdev's hardware can mark a tracker shared with other mdevs. */
    sharedTracker: z.boolean().default(false),
    /** Bytes of video memory behind a BAR: what peers write to. */
    vram: z
      .int()
      .min(4096)
      .max(2 ** 30)
      .default(16 * 2 ** 20),
  }),
  z.strictObject({
    model: z.literal("replay"),
    ...common,
    ...behind,
    /** What it writes, and when, its trace says. */
    load: z
      .strictObject({ rate: z.number().min(0).max(0), footprint: z.number().min(0).max(0) })
      .prefault({ rate: 0, footprint: 0 }),
    /** The file of the trace. */
    trace: z.string().min(1).max(4096),
    ...filed,
    /** Whose writes of the trace, as it names them. Default: the device's id. */
    owner: z.string().min(1).max(256).optional(),
    dmaLogging: dmaLogging.prefault({}),
  }),
  z.strictObject({
    model: z.literal("nvme"),
    ...common,
    ...behind,
    /** The raw file with the disk's contents, which the destination must reach, too; absent: one is made. */
    file: z.string().min(1).max(4096).optional(),
    ...filed,
  }),
  z.strictObject({
    model: z.literal("dma-engine"),
    ...common,
    ...behind,
    /** Bytes of its BAR 2, doorbells and local memory: a power of two. */
    memory: z
      .int()
      .min(32 * 2 ** 10)
      .max(2 ** 28)
      .refine((bytes) => Number.isInteger(Math.log2(bytes)), "a power of two")
      .default(2 ** 20),
  }),
  /** Whatever someone else's server serves at its socket. */
  z.strictObject({ model: z.literal("vfio-user"), ...common }),
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
 * The platform that goes with a machine's IOMMUs: an SMMU keeps its MSI window where a PC has RAM.
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

/** Checks the description of an emulated machine, and fills in what it leaves out. */
export const machineSchema = z
  .strictObject({
    /** Bytes of RAM. */
    memory,
    vcpus: z.strictObject({
      count: z.int().min(0).max(64).default(2),
      /** Megabytes (10^6) per second that each writes. */
      rate: z.number().min(0).max(100_000).default(20),
      /** Bytes of guest memory that each writes to. */
      footprint: z
        .int()
        .min(4096)
        .max(2 ** 40)
        .default(16 * 2 ** 20),
    }),
    /** Share of RAM that is filled with random data at the start; the rest is zero. */
    fill: z.number().min(0).max(1).default(0.5),
    /** Of the fill, and of disks that are made. */
    seed: z.int().min(0).max(0xffffffff).default(1),
    iommus: z.array(iommu).max(MAX_IOMMUS).default([]),
    devices: z.array(device).max(MAX_DEVICES),
    /** Threads that devices are spread over. */
    deviceThreads: z.int().min(1).max(16).default(1),
    /** P2P: the firmware table (p2pTargets), all pairs, or none. */
    p2p: z.enum(["all", "none", "table"]).default("table"),
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
 * A machine of passed-through devices: what a destination must have the like of. What the devices do is the guest's business,
 * and nothing of it is described.
 */
export const passthroughSchema = z.strictObject({
  kind: z.literal("passthrough"),
  /** Bytes of RAM. */
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
