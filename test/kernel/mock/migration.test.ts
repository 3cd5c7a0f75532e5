import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeEach, describe, expect, test } from "vitest";
import type { PassthroughMachine } from "../../../src/host/passthrough-machine.js";
import { MiB } from "../../../src/memory/address.js";
import { fillMemory } from "../../../src/memory/fill.js";
import { createGuestMemory } from "../../../src/memory/guest-memory.js";
import { receive } from "../../../src/migration/destination.js";
import { acceptedSource, sourceTransport } from "../../../src/migration/network.js";
import { type MigrateOptions, migrate } from "../../../src/migration/source.js";
import { listen } from "../../../src/migration/transport/listener.js";
import { DEFAULT_POLICY } from "../../../src/tracking/choice.js";
import { openDesign } from "../../../src/tracking/designs.js";
import { chooseTrackers } from "../../../src/tracking/policy.js";
import { probeMachine } from "../../../src/tracking/probe.js";
import { VFIO_PCI_REGION_INDEX } from "../../../src/uapi/vfio.js";
import { machineWith, WritingVcpu } from "../support/passthrough-machine.js";
import { linux } from "../support/vfio-bench.js";
import { createMtty } from "../support/vfio-devices.js";

/*
 * Machines of devices of the real kernel, through the same trackers and the same migration as those of the emulated host.
 */

const MEMORY = 8 * MiB;
/** Starting a migration's threads takes its time on an emulated processor. */
const MIGRATION_MS = 600_000;

/** The scratch register of a 16550 UART. */
const UART_SCR = 7;

const mttys = [createMtty(), createMtty()] as const;
const opened: AsyncDisposable[] = [];
let journals: string;
beforeEach(() => {
  journals = mkdtempSync(join(tmpdir(), "dirtmap-kernel-"));
});
afterEach(async () => {
  for (const each of opened.splice(0).reverse()) await each[Symbol.asyncDispose]();
  rmSync(journals, { recursive: true, force: true });
});
afterAll(async () => {
  for (const mtty of mttys) await mtty[Symbol.asyncDispose]();
});

/** A machine with a vCPU, and one of the mttys. */
async function machine(mtty: (typeof mttys)[number]): Promise<{ machine: PassthroughMachine; vcpu: WritingVcpu }> {
  const memory = createGuestMemory(MEMORY);
  const vcpu = new WritingVcpu(memory);
  const made = await machineWith(mtty, { memory, vcpus: vcpu });
  opened.push(made, { [Symbol.asyncDispose]: () => vcpu.pause() });
  return { machine: made, vcpu };
}

function scratch({ devices: [{ vfio }] }: PassthroughMachine) {
  const { BAR0 } = VFIO_PCI_REGION_INDEX;
  return {
    write: (value: number) => linux(vfio).regionWrite(BAR0, UART_SCR, Uint8Array.of(value)),
    read: async () => (await linux(vfio).regionRead(BAR0, UART_SCR, 1))[0],
  };
}

describe("a machine of a device of this kernel", () => {
  test("is probed, its tracker chosen and read: the vCPU's pages are dirty, the serial port's are none", async () => {
    const { machine: made, vcpu } = await machine(mttys[0]);
    const probed = await probeMachine(made);
    expect(probed).toMatchObject([
      { id: "serial0", model: "mtty", mdev: true, flags: { tracksInternally: true, tracksThroughContainer: false } },
    ]);
    const choices = chooseTrackers(probed, DEFAULT_POLICY);
    expect(choices.map(({ device, tracker }) => [device, tracker])).toEqual([["serial0", "pinned"]]);
    await using tracking = await openDesign("split", made, choices);
    await tracking.start();
    expect((await tracking.read({ quiesced: false })).dirty.count()).toBe(0);
    await vcpu.resume();
    while (vcpu.writes < 5) await new Promise((resolve) => setTimeout(resolve, 10));
    await vcpu.pause();
    const { dirty, byOwner, failures } = await tracking.read({ quiesced: false });
    expect(failures).toEqual([]);
    expect(dirty.count()).toBe(vcpu.writes);
    expect(byOwner.serial0).toMatchObject({ reported: 0 });
    expect(byOwner.cpu).toMatchObject({ reported: vcpu.writes });
  });

  /** Migrates to a machine with the other serial port. */
  async function move(source: PassthroughMachine, options: Partial<MigrateOptions> = {}) {
    await using listener = await listen({ endpoint: { scheme: "tcp", host: "127.0.0.1", port: 0 } });
    let destination: Awaited<ReturnType<typeof machine>> | undefined;
    const over = new AbortController();
    const receiving = listener.acceptControl(over.signal).then((control) =>
      receive({
        source: acceptedSource(listener, control),
        createPassthroughMachine: async (description) => {
          expect(description).toEqual(source.description);
          destination = await machine(mttys[1]);
          return destination.machine;
        },
        journalDirectory: journals,
      }),
    );
    receiving.catch(() => {});
    try {
      const report = await migrate({
        machine: source,
        description: source.description,
        transport: sourceTransport({ endpoint: listener.endpoint }),
        policy: DEFAULT_POLICY,
        design: "split",
        downtimeLimitMs: 60_000,
        channels: 1,
        journalDirectory: journals,
        ...options,
      });
      return { report, received: await receiving, destination };
    } finally {
      over.abort(new Error("the migration is over"));
    }
  }

  test("migrates live to a machine with another such device, and both memories are the same", {
    timeout: MIGRATION_MS,
  }, async () => {
    const { machine: source, vcpu } = await machine(mttys[0]);
    fillMemory(source.memory, 0.5, 1);
    await scratch(source).write(0x5a);
    await vcpu.resume();
    const { report, received, destination } = await move(source);
    expect(report.error).toBeUndefined();
    expect(report).toMatchObject({ result: "completed", verified: true, memory: { pagesDifferent: 0 } });
    expect(report.devices).toMatchObject([{ id: "serial0", model: "mtty", tracker: "pinned" }]);
    expect(received.outcome).toBe("running");
    expect(await source.devices[0].vfio.state()).toBe("STOP_COPY");
    if (destination === undefined) throw new Error("no destination");
    expect(await destination.machine.devices[0].vfio.state()).toBe("RUNNING");
    expect(await scratch(destination.machine).read()).toBe(0x5a);
    expect(destination.vcpu.writes).toBeGreaterThanOrEqual(vcpu.writes);
  });

  test("a write that the trackers are made to lose is found by verification", { timeout: MIGRATION_MS }, async () => {
    const { machine: source, vcpu } = await machine(mttys[0]);
    fillMemory(source.memory, 0.5, 1);
    await vcpu.resume();
    const { report } = await move(source, { hooks: { afterRead: (_, dirty) => dirty.clear() } });
    expect(report).toMatchObject({ result: "completed", verified: false });
    expect(report.memory?.pagesDifferent).toBeGreaterThan(0);
  });

  test("that is told to stop migrating goes on running here, with its devices back in RUNNING", {
    timeout: MIGRATION_MS,
  }, async () => {
    const { machine: source, vcpu } = await machine(mttys[0]);
    await scratch(source).write(0x33);
    await vcpu.resume();
    const cancel = new AbortController();
    const { report, received } = await move(source, {
      signal: cancel.signal,
      hooks: {
        beforePhase: (phase) => {
          // The devices are in STOP_COPY.
          if (phase === "stop-copy") cancel.abort(new Error("no"));
        },
      },
    });
    expect(report).toMatchObject({ result: "cancelled", error: { code: "CANCELLED" } });
    expect(received.outcome).toBe("discarded");
    expect(await source.devices[0].vfio.state()).toBe("RUNNING");
    expect(await scratch(source).read()).toBe(0x33);
  });

  test("is gone without a trace once it is disposed of: no descriptor stays open", async () => {
    const descriptors = () => readdirSync("/proc/self/fd").length;
    const once = async () => {
      const { machine: made } = await machine(mttys[0]);
      await made.devices[0].vfio.setState("PRE_COPY");
      await made[Symbol.asyncDispose]();
    };
    await once();
    const before = descriptors();
    await once();
    await once();
    expect(descriptors()).toBe(before);
  });
});
