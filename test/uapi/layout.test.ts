import { describe, expect, it } from "vitest";
import { absentNames, type Fact, factsOf } from "./facts.js";
import { Compiler, headerFolder, missingCompiler } from "./headers.js";

/** include/linux/errno.h, which is not for user space, has it; that some drivers answer it all the same is in errno.ts. */
const KERNEL_ONLY = new Set(["ENOTSUPP"]);

/** In CI it must be there. */
const without = process.env.CI === undefined ? missingCompiler() : null;

const modules = await factsOf("src/uapi");
// A protocol of its own, which no header of the kernel describes.
modules.delete("vfio-user.js");
// The package's door: what it exports are the others' names.
modules.delete("index.js");
const testInterface = await factsOf("test/kernel/uapi");
const facts = [...modules.values(), ...testInterface.values()]
  .flatMap((module) => module.facts)
  .filter(({ expression }) => !KERNEL_ONLY.has(expression));

describe("src/uapi and test/kernel/uapi", () => {
  it("exports nothing but code and what can be compared with the headers", () => {
    const all = new Map([...modules, ...testInterface]);
    expect(Object.fromEntries([...all].map(([name, { strangers }]) => [name, strangers]))).toEqual(
      Object.fromEntries([...all.keys()].map((name) => [name, []])),
    );
    expect(facts.length).toBeGreaterThan(300);
  });
});

describe.skipIf(without !== null)(`what the headers say${without === null ? "" : ` (${without})`}`, () => {
  it("is what they say: every size, offset, ioctl number, flag and errno", (context) => {
    using compiler = new Compiler(headerFolder());
    const absent = absentNames(
      compiler.preprocessed(),
      facts.flatMap(({ needs }) => needs),
    );
    if (absent.size > 0) {
      // Where a structure is absent, so are its members.
      const list = [...absent].filter((name) => !absent.has(name.replace(/ .*/, "")) || !name.includes(" ")).join(", ");
      // The reference headers have all of it; a name that they lack is misspelt here.
      expect(headerFolder(), `the headers don't have ${list}`).toBe(null);
      context.annotate(`older than Linux 7.2, this system's headers don't have ${list}; the rest was compared`);
    }
    const known = facts.filter(({ needs }) => !needs.some((name) => absent.has(name)));
    const theirs = compiler.evaluate(known.map(({ expression }) => expression));
    const compared = (value: (fact: Fact, index: number) => bigint | undefined) =>
      Object.fromEntries(known.map((fact, index) => [fact.expression, value(fact, index)]));
    expect(compared(({ ours }) => ours)).toEqual(compared((_, index) => theirs[index]));
  });
});
