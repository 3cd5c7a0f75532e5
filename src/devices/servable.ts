import { UsageError } from "../errors.js";
import type { DeviceModel } from "./model.js";

/*
 * What a model offers so that it can be served to other processes: its name, the options that it takes, and how one is
 * made of them. servable-models.ts lists all that there are.
 */

/** The value of a model's option. */
export type OptionValue = string | number;

/** An option of a model, for `--option name=value`. */
export interface ModelOption {
  readonly name: string;
  readonly about: string;
  /** The kind of value: `size` (a number of bytes, written 4K, 2M … on the command line), `number`, or `text` (a string). */
  readonly kind: "size" | "number" | "text";
  /** The bounds of a size or number, inclusive. */
  readonly min?: number;
  readonly max?: number;
  /** The value if the option is absent. An option without a default is undefined then, or refused if {@link required}. */
  readonly default?: OptionValue;
  readonly required?: boolean;
}

/** Where the file of a disk may lie. */
export const WITHIN: ModelOption = {
  name: "within",
  about: "a folder that the file must lie in, links followed; left out: anywhere",
  kind: "text",
};

/** The values of a model's options, checked, with defaults filled in. */
export type ModelOptions = Readonly<Record<string, OptionValue | undefined>>;

/** A feed of UDP datagrams for a NIC, over the loopback interface. */
export interface Feed {
  /** The UDP port that the NIC receives at. */
  readonly port: number;
  /** The rate at which the NIC is to write, in MB/s (10^6 bytes per second). */
  readonly rate: number;
}

/** A device model that a process of its own can serve. */
export interface ServableModel {
  readonly name: string;
  /** One line for a list of models. */
  readonly summary: string;
  readonly options: readonly ModelOption[];
  /**
   * True if its outside end (a socket, a file that is read asynchronously) needs its thread's event loop. A model without this
   * need is served with less latency.
   */
  readonly needsEventLoop: boolean;
  /** Returns the feed that the device needs in order to have work; absent or undefined: none. */
  feed?(options: ModelOptions, model: DeviceModel): Feed | undefined;
  /**
   * Makes a device, which its host starts.
   * @param its.incoming true: another server's device will be migrated to it, and owns shared resources until this device works
   * @throws UsageError for impossible options, such as a missing file
   */
  create(options: ModelOptions, its: { readonly id: string; readonly incoming: boolean }): DeviceModel;
}

/** Checks options against what the model takes, and fills in defaults. @throws UsageError `BAD_OPTION` */
export function completeOptions(
  { name: model, options: known }: ServableModel,
  given: Readonly<Record<string, OptionValue>>,
): ModelOptions {
  const refuse = (what: string, remedy: string): never => {
    throw new UsageError(`${model}: ${what}`, { code: "BAD_OPTION", remedy });
  };
  for (const name of Object.keys(given)) {
    if (known.some((option) => option.name === name)) continue;
    refuse(`there is no option '${name}'`, `it has: ${known.map((option) => option.name).join(", ") || "none"}`);
  }
  const complete: Record<string, OptionValue | undefined> = {};
  for (const option of known) {
    const value = Object.hasOwn(given, option.name) ? given[option.name] : option.default;
    complete[option.name] = value;
    if (value === undefined) {
      if (option.required === true) refuse(`the option '${option.name}' is missing`, option.about);
    } else if (option.kind === "text" ? typeof value !== "string" : !isInRange(value, option)) {
      refuse(`'${value}' is not possible as '${option.name}'`, `give ${expected(option)}`);
    }
  }
  return complete;
}

function isInRange(value: OptionValue, { kind, min = 0, max = Number.MAX_SAFE_INTEGER }: ModelOption): boolean {
  if (typeof value !== "number" || !Number.isFinite(value)) return false;
  return value >= min && value <= max && (kind === "number" || Number.isInteger(value));
}

function expected({ kind, min = 0, max }: ModelOption): string {
  if (kind === "text") return "text";
  return `a ${kind} ${max === undefined ? `from ${min} on` : `from ${min} to ${max}`}`;
}

/** An option's value where its {@link ModelOption} says that it is a number and is there. */
export function numberOption(options: ModelOptions, name: string): number {
  const value = options[name];
  if (typeof value !== "number") throw new TypeError(`the option '${name}' has no number`);
  return value;
}

/** An option's value where its {@link ModelOption} says that it is text; undefined where it was left out. */
export function textOption(options: ModelOptions, name: string): string | undefined {
  const value = options[name];
  if (typeof value === "number") throw new TypeError(`the option '${name}' is no text`);
  return value;
}
