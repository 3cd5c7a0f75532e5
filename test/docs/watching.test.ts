import { afterEach, beforeEach, expect, it } from "vitest";
import { FakeQemu } from "../../src/qemu/qmp/fake-qemu.test.helper.js";
import { asGuest, play, RECORDED } from "../../src/qemu/watch/recorded.test.helper.js";
import { dirtmap } from "../support/program.js";
import { blocksOf } from "./blocks.js";
import { OF_A_MIGRATION } from "./declared.js";
import { expectForm, transcriptsOf } from "./transcript.js";

/* The transcript of docs/watching.md, with a migration that a fake QEMU tells as a real one told it. */

let fake: FakeQemu;
beforeEach(async () => {
  fake = asGuest(await FakeQemu.start());
});
afterEach(() => fake[Symbol.asyncDispose]());

it("docs/watching.md shows what is printed of a migration that completes", { timeout: 60_000 }, async () => {
  const all = blocksOf("docs/watching.md").flatMap(({ text }) => transcriptsOf(text));
  const [transcript] = all.filter(({ command }) => OF_A_MIGRATION.test(command));
  play(fake, RECORDED.completed);
  const args = transcript.command.replace("vm7.qmp", fake.path).split(" ").slice(1);
  const { code, stdout, stderr } = await dirtmap(args);
  expect(code, stderr).toBe(0);
  expectForm(stdout, transcript);
});
