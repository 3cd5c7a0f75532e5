import { z } from "zod";
import { DirtmapError } from "../../errors.js";
import { safeText } from "../../safe-text.js";
import type { EventStream } from "./event-stream.js";
import { type ExecuteOptions, type Monitor, QmpRefusal } from "./monitor.js";

/*
 * The commands of QMP that are used here, each with the form that its answer must have. Names are QEMU's.
 */

/** Characters of a name or a path that QEMU tells, and of an error. */
const MAX_TEXT = 1024;
const text = z.string().transform((value) => safeText(value, MAX_TEXT));
/** Names that are sent back to QEMU stay as they are; they are made safe where they are printed. */
const name = z.string().max(4096);
const count = z.int().min(0);

const nothing = z.looseObject({});

const statusSchema = z.looseObject({ running: z.boolean(), status: text });

const ramSchema = z.looseObject({
  transferred: count,
  remaining: count,
  total: count,
  duplicate: count.optional(),
  normal: count.optional(),
  "dirty-pages-rate": count.optional(),
  "dirty-sync-count": count.optional(),
  "page-size": count.optional(),
  mbps: z.number().optional(),
});

const migrateSchema = z.looseObject({
  status: text.optional(),
  "error-desc": text.optional(),
  "blocked-reasons": z.array(text).max(256).optional(),
  "total-time": count.optional(),
  downtime: count.optional(),
  "expected-downtime": count.optional(),
  "setup-time": count.optional(),
  /** Of the whole system, devices included. */
  remaining: count.optional(),
  /** A sum over all VFIO devices. */
  vfio: z.looseObject({ transferred: count }).optional(),
  ram: ramSchema.optional(),
});

const propertySchema = z.looseObject({ name, type: name });

const regionSchema = z.looseObject({
  bar: z.int().min(0).max(6),
  type: z.enum(["memory", "io"]),
  size: count,
  // QEMU's JSON has addresses above 2^53, and -1 for one that is not there, as it has all numbers: only their loss is safe.
  address: z.number(),
});

/** A PCI function, as the guest's firmware or kernel has numbered it. */
export interface PciFunction {
  readonly bus: number;
  readonly slot: number;
  readonly function: number;
  readonly qdev_id: string;
  readonly id: { readonly vendor: number; readonly device: number };
  readonly regions: readonly z.output<typeof regionSchema>[];
  /** Of a bridge. */
  readonly pci_bridge?:
    | { readonly bus: { readonly secondary: number }; readonly devices?: readonly PciFunction[] | undefined }
    | undefined;
}

const functionSchema: z.ZodType<PciFunction> = z.looseObject({
  bus: z.int().min(0).max(255),
  slot: z.int().min(0).max(31),
  function: z.int().min(0).max(7),
  qdev_id: name,
  id: z.looseObject({ vendor: z.int(), device: z.int() }),
  regions: z.array(regionSchema).max(16),
  pci_bridge: z
    .looseObject({
      bus: z.looseObject({ secondary: z.int().min(0).max(255) }),
      get devices() {
        return z.array(functionSchema).max(256).optional();
      },
    })
    .optional(),
});

const busSchema = z.looseObject({ bus: z.int().min(0).max(255), devices: z.array(functionSchema).max(256) });

const memorySchema = z.looseObject({ "base-memory": count, "plugged-memory": count.optional() });

const capabilitiesSchema = z.array(z.looseObject({ capability: name, state: z.boolean() })).max(256);
const parametersSchema = z.record(z.string(), z.unknown());

/** Which QEMU it is. */
export interface QemuVersion {
  readonly major: number;
  readonly minor: number;
  readonly micro: number;
  /** The distribution's package; empty for a QEMU of one's own making. */
  readonly package: string;
}

export type RunState = z.output<typeof statusSchema>;
export type MigrationInfo = z.output<typeof migrateSchema>;
export type PciBus = z.output<typeof busSchema>;

/**
 * One QEMU, asked over its monitor. Answers have the form that they must have, and what QEMU says in words is harmless.
 * @throws of every method: DirtmapError `QMP_REFUSED`, `QMP_TIMED_OUT`, `QMP_CLOSED`; `QMP_PROTOCOL` for an answer of another form
 */
export class Qemu implements AsyncDisposable {
  readonly monitor: Monitor;

  /** @param monitor taken over */
  constructor(monitor: Monitor) {
    this.monitor = monitor;
  }

  get name(): string {
    return this.monitor.name;
  }

  events(): EventStream {
    return this.monitor.events();
  }

  async version(): Promise<QemuVersion> {
    const answer = await this.#ask("query-version", versionSchema);
    return { ...answer.qemu, package: answer.package.trim() };
  }

  status(): Promise<RunState> {
    return this.#ask("query-status", statusSchema);
  }

  stop(): Promise<unknown> {
    return this.#ask("stop", nothing);
  }

  cont(): Promise<unknown> {
    return this.#ask("cont", nothing);
  }

  /** Ends QEMU. Resolves when it has said so; the connection ends then. */
  quit(): Promise<unknown> {
    return this.#ask("quit", nothing);
  }

  migration(options?: ExecuteOptions): Promise<MigrationInfo> {
    return this.#ask("query-migrate", migrateSchema, {}, options);
  }

  /** @param uri where the destination listens, as QEMU writes it */
  migrate(uri: string): Promise<unknown> {
    return this.#ask("migrate", nothing, { uri });
  }

  migrateIncoming(uri: string): Promise<unknown> {
    return this.#ask("migrate-incoming", nothing, { uri });
  }

  migrateContinue(): Promise<unknown> {
    return this.#ask("migrate-continue", nothing, { state: "pre-switchover" });
  }

  migrateCancel(): Promise<unknown> {
    return this.#ask("migrate_cancel", nothing);
  }

  /** Ends the stream of a migration, which then fails: also where QEMU stands still in it. */
  yankMigration(): Promise<unknown> {
    return this.#ask("yank", nothing, { instances: [{ type: "migration" }] }, { outOfBand: true });
  }

  async capabilities(): Promise<ReadonlyMap<string, boolean>> {
    const list = await this.#ask("query-migrate-capabilities", capabilitiesSchema);
    return new Map(list.map(({ capability, state }) => [capability, state]));
  }

  setCapabilities(states: Readonly<Record<string, boolean>>): Promise<unknown> {
    const capabilities = Object.entries(states).map(([capability, state]) => ({ capability, state }));
    return this.#ask("migrate-set-capabilities", nothing, { capabilities });
  }

  parameters(): Promise<Readonly<Record<string, unknown>>> {
    return this.#ask("query-migrate-parameters", parametersSchema);
  }

  setParameters(values: Readonly<Record<string, unknown>>): Promise<unknown> {
    return this.#ask("migrate-set-parameters", nothing, values);
  }

  /** Bytes of memory that the guest has. */
  async memoryBytes(): Promise<number> {
    const summary = await this.#ask("query-memory-size-summary", memorySchema);
    return summary["base-memory"] + (summary["plugged-memory"] ?? 0);
  }

  /** As QEMU was told with -name; null: it was not. */
  async guestName(): Promise<string | null> {
    return (await this.#ask("query-name", z.looseObject({ name: text.optional() }))).name ?? null;
  }

  /** Null for one without. */
  async guestUuid(): Promise<string | null> {
    const { UUID } = await this.#ask("query-uuid", z.looseObject({ UUID: text }));
    return /^[0-]*$/.test(UUID) ? null : UUID;
  }

  pci(): Promise<readonly PciBus[]> {
    return this.#ask("query-pci", z.array(busSchema).max(256));
  }

  /** Properties of an object, its children among them. */
  qomList(path: string): Promise<readonly z.output<typeof propertySchema>[]> {
    return this.#ask("qom-list", z.array(propertySchema).max(65_536), { path });
  }

  qomGet<Schema extends z.ZodType>(path: string, property: string, schema: Schema): Promise<z.output<Schema>> {
    return this.#ask("qom-get", schema, { path, property });
  }

  /** True for a type that this QEMU has. */
  async hasType(type: string): Promise<boolean> {
    const types = await this.#ask("qom-list-types", z.array(z.looseObject({ name })).max(65_536), { implements: type });
    return types.some((each) => each.name === type);
  }

  /** A command of the monitor for people; returns what it prints, as it is. */
  human(commandLine: string): Promise<string> {
    return this.#ask("human-monitor-command", z.string().max(2 ** 20), { "command-line": commandLine });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.monitor[Symbol.asyncDispose]();
  }

  async #ask<Schema extends z.ZodType>(
    command: string,
    schema: Schema,
    args: object = {},
    options?: ExecuteOptions,
  ): Promise<z.output<Schema>> {
    const answer = schema.safeParse(await this.monitor.execute(command, args, options));
    if (answer.success) return answer.data;
    const { path, message } = answer.error.issues[0];
    throw new DirtmapError(
      `QEMU at ${this.name} answers '${command}' with what can't be understood: ${safeText(path.join("."), 200)}: ${message}`,
      { code: "QMP_PROTOCOL", remedy: "use QEMU 10.1 or later; this was tried with 11.1" },
    );
  }
}

const versionSchema = z.looseObject({
  qemu: z.looseObject({ major: z.int().min(0), minor: z.int().min(0), micro: z.int().min(0) }),
  package: text,
});

/** True for an object or a property that this QEMU does not have, or does not tell. */
export function isRefusal(error: unknown): error is QmpRefusal {
  return error instanceof QmpRefusal;
}
