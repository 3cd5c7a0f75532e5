import { DirtmapError, explain } from "../errors.js";
import type { Qemu } from "./qmp/qemu.js";

/** What a migration wants of QEMU: its capabilities and parameters, by QEMU's names. */
export interface WantedSettings {
  readonly capabilities: Readonly<Record<string, boolean>>;
  readonly parameters?: Readonly<Record<string, string | number | boolean>>;
}

/** Settings as they were. */
export interface PreviousSettings {
  readonly capabilities: Readonly<Record<string, boolean>>;
  readonly parameters: Readonly<Record<string, unknown>>;
}

/**
 * QEMU's settings for migrations, changed for one of them. What holds: after {@link restore} each setting that was changed is as
 * it was found; no other was touched.
 */
export class MigrationSettings {
  readonly #qemu: Qemu;
  readonly #capabilities: Record<string, boolean> = {};
  readonly #parameters: Record<string, unknown> = {};

  private constructor(qemu: Qemu) {
    this.#qemu = qemu;
  }

  /** Settings that another process changed, and could not put back. @param before what it had noted */
  static changed(qemu: Qemu, { capabilities, parameters }: PreviousSettings): MigrationSettings {
    const settings = new MigrationSettings(qemu);
    Object.assign(settings.#capabilities, capabilities);
    Object.assign(settings.#parameters, parameters);
    return settings;
  }

  /**
   * @param noteBefore is told what will be changed, as it is now
   * @throws DirtmapError `NO_SUCH_SETTING` for a capability or parameter that this QEMU lacks, `QMP_REFUSED`
   */
  static async change(
    qemu: Qemu,
    { capabilities, parameters = {} }: WantedSettings,
    noteBefore: (before: PreviousSettings) => void = () => {},
  ): Promise<MigrationSettings> {
    const settings = new MigrationSettings(qemu);
    const [found, values] = await Promise.all([qemu.capabilities(), qemu.parameters()]);
    for (const name of Object.keys(capabilities)) if (!found.has(name)) throw lacks(qemu, `capability '${name}'`);
    for (const name of Object.keys(parameters))
      if (values[name] === undefined) throw lacks(qemu, `parameter '${name}'`);
    const different = Object.entries(capabilities).filter(([name, state]) => found.get(name) !== state);
    const others = Object.entries(parameters).filter(([name, value]) => values[name] !== value);
    noteBefore({
      capabilities: Object.fromEntries(different.map(([name]) => [name, found.get(name) === true])),
      parameters: Object.fromEntries(others.map(([name]) => [name, values[name]])),
    });
    try {
      if (different.length > 0) {
        await qemu.setCapabilities(Object.fromEntries(different));
        for (const [name] of different) settings.#capabilities[name] = found.get(name) === true;
      }
      if (others.length > 0) {
        await qemu.setParameters(Object.fromEntries(others));
        for (const [name] of others) settings.#parameters[name] = values[name];
      }
      return settings;
    } catch (error) {
      await settings.restore();
      throw error;
    }
  }

  /** Puts back what was changed. Returns what could not be, as sentences: nothing is worth failing for by then. */
  async restore(): Promise<string[]> {
    const problems: string[] = [];
    const tried = async (what: string, doing: () => Promise<unknown>) => {
      try {
        await doing();
      } catch (error) {
        problems.push(`the migration ${what} of QEMU at ${this.#qemu.name} are not as they were: ${explain(error)}`);
      }
    };
    // Parameters first: some can only be changed while their capability is on.
    if (Object.keys(this.#parameters).length > 0) {
      await tried("parameters", () => this.#qemu.setParameters(this.#parameters));
    }
    if (Object.keys(this.#capabilities).length > 0) {
      await tried("capabilities", () => this.#qemu.setCapabilities(this.#capabilities));
    }
    return problems;
  }
}

function lacks(qemu: Qemu, what: string): DirtmapError {
  return new DirtmapError(`QEMU at ${qemu.name} has no migration ${what}`, {
    code: "NO_SUCH_SETTING",
    remedy: "use a newer QEMU, or leave that option out",
  });
}

/** QEMU's own, where it tells none (DEFAULT_MIGRATE_SET_DOWNTIME). */
const QEMU_DOWNTIME_LIMIT_MS = 300;

/** What an operator may ask of QEMU's migration; both sides are asked the same. */
export interface MigrationTuning {
  /** Streams of QEMU's multifd; 0, as by default: it is off. */
  readonly multifdChannels?: number;
  /** Default: QEMU's own setting. */
  readonly downtimeLimitMs?: number;
  /** Bytes per second. Default: QEMU's own setting. */
  readonly bandwidth?: number;
}

/** What applies to a migration: what is asked for, else what QEMU has. A bandwidth of 0 is no limit. */
export async function effectiveTuning(qemu: Qemu, asked: MigrationTuning): Promise<Required<MigrationTuning>> {
  const [capabilities, parameters] = await Promise.all([qemu.capabilities(), qemu.parameters()]);
  const own = (name: string, otherwise: number) => {
    const value = parameters[name];
    return typeof value === "number" && Number.isFinite(value) && value >= 0 ? value : otherwise;
  };
  return {
    multifdChannels: capabilities.get("multifd") === true ? own("multifd-channels", 0) : 0,
    downtimeLimitMs: own("downtime-limit", QEMU_DOWNTIME_LIMIT_MS),
    bandwidth: own("max-bandwidth", 0),
    ...asked,
  };
}

/** @param capabilities that this side wants besides */
export function migrationSettings(
  { multifdChannels = 0, downtimeLimitMs, bandwidth }: MigrationTuning,
  capabilities: Readonly<Record<string, boolean>>,
): WantedSettings {
  return {
    capabilities: { ...capabilities, ...(multifdChannels > 0 ? { multifd: true } : {}) },
    parameters: {
      ...(multifdChannels > 0 ? { "multifd-channels": multifdChannels } : {}),
      ...(downtimeLimitMs === undefined ? {} : { "downtime-limit": Math.round(downtimeLimitMs) }),
      ...(bandwidth === undefined ? {} : { "max-bandwidth": Math.round(bandwidth) }),
    },
  };
}
