import { readFileSync, writeFileSync } from "node:fs";
import { type ProcessIdentity, thisProcess } from "../sys/process-identity.js";

/** What tells this process from one that had its pid before it, and has ended. */
export const ENDED: Partial<ProcessIdentity> = { started: "1" };
/** A process of another computer. */
export const ELSEWHERE: Partial<ProcessIdentity> = { boot: "another", host: "elsewhere" };

/** Makes a journal that this process wrote one of a process that differs from it. */
export function pretendWriter(path: string, other: Partial<ProcessIdentity>): void {
  const mine = JSON.stringify(thisProcess());
  const theirs = JSON.stringify({ ...thisProcess(), ...other });
  const slots = readFileSync(path, "utf8").match(/[\s\S]{2048}/g) ?? [];
  writeFileSync(path, slots.map((slot) => `${slot.replace(mine, theirs).trimEnd().padEnd(2047)}\n`).join(""));
}
