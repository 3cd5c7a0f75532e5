import { UsageError } from "../../errors.js";
import type { HostOption } from "./options/host.js";

/** Tells whether the operator typed an option, by its long name. */
export type Typed = (name: string) => boolean;

/** Options that describe or watch a scenario's machine. */
export const OF_MACHINES = [
  ...["scenario", "memory", "seed", "p2p"],
  ...["policy", "unmeasured", "tracker", "granule", "domain", "untracked", "design"],
] as const;

/** Options about the guest of a QEMU. */
export const OF_GUESTS = ["connect", "qemuAddress", "qmpTo", "libvirtTo", "socket", "keepSource"] as const;

/**
 * Refuses options that don't go with another.
 * @throws UsageError `WRONG_OPTION`
 */
export function refuseOptions(typed: Typed, names: readonly string[], why: string): void {
  const given = names.find(typed);
  if (given === undefined) return;
  const written = given.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
  throw new UsageError(`--${written} can't be given here: ${why}`, {
    code: "WRONG_OPTION",
    remedy: "leave out one of the two",
  });
}

/**
 * Refuses options that go with another host than the one that was asked for.
 * @param anywhere options to which the command gives a meaning on every host
 * @throws UsageError `WRONG_HOST`
 */
export function checkHostOptions(typed: Typed, host: HostOption, anywhere: readonly string[] = []): void {
  const emulated = ["scenario", "memory", "seed", "p2p", "design"].filter((name) => !anywhere.includes(name));
  const linux = ["device", "only"].filter((name) => !anywhere.includes(name));
  const others = host === "linux" ? emulated : host === "emulated" ? linux : [...emulated, ...linux];
  const given = others.find(typed);
  if (given === undefined) return;
  const isOfScenario = emulated.includes(given);
  const what = isOfScenario ? "describes a machine of the emulated host" : "is for devices of this machine";
  const whose = host === "linux" ? "this machine" : "devices that are served";
  const is = host === "emulated" ? "the host is the emulated one" : `--host ${host} is ${whose}`;
  throw new UsageError(`--${given} ${what}, and ${is}`, {
    code: "WRONG_HOST",
    remedy: host === "emulated" ? "add --host linux" : `leave out --${given}, or --host ${host}`,
  });
}
