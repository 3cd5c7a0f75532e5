import { readdirSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { machineSchema } from "../../src/host/description.js";
import { KiB, MiB } from "../../src/memory/address.js";
import { Child } from "../support/child.js";
import { bareShape, PlayedSource } from "../support/played-source.js";
import { PROGRAM } from "../support/program.js";

/*
 * `dirtmap receive` as an operator has it: a process that strangers, and sources that leave, must cost nothing.
 */

let journals = "";
beforeAll(async () => {
  journals = await mkdtemp(join(tmpdir(), "dirtmap-receive-"));
});
afterAll(() => rm(journals, { recursive: true }));

async function receiving(...options: string[]): Promise<{ child: Child; port: number }> {
  const child = new Child(
    PROGRAM,
    "receive",
    "--listen",
    "tcp://127.0.0.1:0",
    "--json",
    "--journal",
    journals,
    ...options,
  );
  const { address } = await child.said("event", "listening");
  return { child, port: Number(/:(\d+)$/.exec(String(address))?.[1]) };
}

const small = machineSchema.parse({ memory: 16 * MiB, vcpus: { count: 1, footprint: 64 * KiB }, devices: [] });

async function strayRequest(port: number): Promise<void> {
  const socket = connect(port, "127.0.0.1");
  socket.on("error", () => {}).end("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
  await new Promise((resolve) => socket.once("close", resolve).resume());
}

describe("dirtmap receive", () => {
  it("--once takes a stray HTTP request for no migration, and ends after the first that is one", async () => {
    const { child, port } = await receiving("--once");
    await using _child = child;
    await strayRequest(port);
    expect(await child.said("event", "refused")).toMatchObject({ message: expect.stringContaining("DMAP") });
    // So does one that says what it is, and leaves.
    await using visitor = await PlayedSource.connect(port);
    await visitor.control.send({ type: "PING" });
    await visitor[Symbol.asyncDispose]();

    await using source = await PlayedSource.connect(port);
    const tooLarge = { ...small, memory: 2 ** 44 };
    await expect(source.offer(tooLarge, 1, "too-large", bareShape(small))).rejects.toThrow(/REFUSE/);
    expect(await child.ended).toBe(1);
  });

  it("has as many descriptors after sources have come and left as before, and says nothing of leaks", async () => {
    const { child, port } = await receiving();
    await using _child = child;
    const { pid } = child.process;
    const descriptors = () => readdirSync(`/proc/${pid}/fd`).length;
    // What the first machine opens for good: modules are loaded, and the like.
    await comeAndLeave(child, port, "leaves-first");
    const before = descriptors();
    for (let n = 0; n < 12; n++) {
      await strayRequest(port);
      await comeAndLeave(child, port, `leaves-${n}`);
    }
    for (const until = Date.now() + 10_000; descriptors() > before && Date.now() < until; ) {
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    expect(descriptors()).toBeLessThanOrEqual(before);
    expect(child.errors).toBe("");
  });
});

/** A source whose machine is accepted, and that leaves then. */
async function comeAndLeave(child: Child, port: number, migration: string): Promise<void> {
  await using source = await PlayedSource.connect(port);
  await source.offer(small, 2, migration);
  await source.channel(1);
  await source[Symbol.asyncDispose]();
  await child.said("migration", migration);
}
