import { Random } from "../../tools/random.js";
import { nextOperation, opening } from "./generate.js";
import type { MockKind } from "./mock-kind.js";
import { Model } from "./model.js";
import { type Answer, describeOperation, type Operation } from "./operation.js";
import type { Side } from "./side.js";

/** Makes fresh sides: the emulated host, and what it is compared with. */
export type MakeSides = (kind: MockKind) => Promise<readonly [emulated: Side, kernel: Side]>;

/** One operation, and what the two hosts answered. */
export interface Step {
  readonly operation: Operation;
  readonly emulated: Answer;
  readonly kernel: Answer;
}

/** A sequence on which the hosts differ, in its last step. */
export interface Difference {
  readonly kind: MockKind;
  readonly steps: readonly Step[];
}

/** Operations in a sequence, besides its opening. */
const MIN_OPERATIONS = 20;
const MAX_OPERATIONS = 40;

/** What can be asked of both hosts in the end, of each object that was there. */
const PROBE: Operation = { kind: "getRlimitMode" };

/**
 * Makes up the sequence of a seed while it runs it on both hosts.
 * @returns the steps up to the first difference, or null
 */
export async function runSeed(make: MakeSides, kind: MockKind, seed: number): Promise<Difference | null> {
  const random = new Random(seed);
  const begin = new Model();
  const planned = opening(kind, random, begin);
  const count = planned.length + random.between(MIN_OPERATIONS, MAX_OPERATIONS);
  const model = begin;
  return run(make, kind, model, (index) => {
    if (index >= count) return null;
    return planned[index] ?? nextOperation(kind, random, model);
  });
}

/** Runs operations that are known already. */
export function runOperations(
  make: MakeSides,
  kind: MockKind,
  operations: readonly Operation[],
): Promise<Difference | null> {
  return run(make, kind, new Model(), (index) => operations[index] ?? null);
}

async function run(
  make: MakeSides,
  kind: MockKind,
  model: Model,
  next: (index: number) => Operation | null,
): Promise<Difference | null> {
  const [emulated, kernel] = await make(kind);
  await using _emulated = emulated;
  await using _kernel = kernel;
  const steps: Step[] = [];
  for (let index = 0; ; index++) {
    const generated = next(index);
    if (generated === null) break;
    const operation = writable(generated, model, kind);
    if (await emulated.hangsLinux(operation)) continue;
    const step = { operation, emulated: await emulated.run(operation), kernel: await kernel.run(operation) };
    steps.push(step);
    if (step.emulated.text !== step.kernel.text) return { kind, steps };
    for (const name of model.apply(operation, step.kernel)) {
      emulated.ids.end(name);
      kernel.ids.end(name);
    }
  }
  for (const name of [...model.objects.keys(), ...model.gone]) {
    const expected = model.objects.has(name);
    const seen = [await emulated.exists(name), await kernel.exists(name)] as const;
    if (seen[0] === expected && seen[1] === expected) continue;
    const [e, k] = seen.map((exists) => ({ ok: true, text: `${name} ${exists ? "is there" : "is gone"}` }));
    return { kind, steps: [...steps, { operation: PROBE, emulated: e, kernel: k }] };
  }
  return null;
}

/** Leaves out the writes of a `mark` that hit what is mapped for reading alone: the mock would set dirty bits there. */
function writable(operation: Operation, model: Model, kind: MockKind): Operation {
  if (operation.kind !== "mark") return operation;
  const areas = model.areasOf(operation.hwpt).filter(({ permissions }) => !permissions.includes("w"));
  const page = BigInt(kind.ioPage);
  const pages = operation.pages.filter((index) => {
    const at = operation.iova + BigInt(index) * page;
    return !areas.some(({ iova, length }) => at >= iova && at < iova + length);
  });
  return { ...operation, pages };
}

/** The difference as a list for a person to read. */
export function describeDifference({ kind, steps }: Difference): string {
  const lines = steps.map(({ operation, emulated, kernel }, index) => {
    const same = emulated.text === kernel.text;
    const answer = same
      ? `-> ${kernel.text}`
      : `\n       emulated -> ${emulated.text}\n       kernel   -> ${kernel.text}`;
    return `  ${index + 1}. ${describeOperation(operation)} ${answer}`;
  });
  return `on the mock's ${kind.name} page tables:\n${lines.join("\n")}`;
}
