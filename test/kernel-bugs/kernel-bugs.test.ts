import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it, test } from "vitest";
import { MissingError } from "../../tools/vm/missing.js";
import { findShellImage, makeShellInitramfs, ShellGuest, type ShellImage } from "../interop/guest-shell.js";
import { requireFound } from "../support/required.js";

/*
 * The bugs of Linux that docs/kernel-bugs.md describes, each shown by the C program beside this file that the document names. A
 * test fails if the kernel no longer has its bug: then the document, and what the library does about the bug, are to be updated.
 */

const root = fileURLToPath(new URL("../../../", import.meta.url));
const TEST_LIMIT_MS = 300_000;
const KILLED = 128 + 9;

const DOCUMENT = readFileSync(join(root, "docs/kernel-bugs.md"), "utf8");

/** What a program prints, as the document shows it. */
const shown = new Map(
  [...DOCUMENT.matchAll(/^\*\*Shown by\*\* \[`([\w-]+)\.c`\][\s\S]*?^```text\n([\s\S]*?)^```$/gm)].map(
    ([, program, output]) => [program, output],
  ),
);
/** Those that need a device, or a machine of their own. */
const APART = ["type1-stale", "leaf-loop", "mtty-close"];

const EDU = "0000:00:05.0";
const MTTY = "00000000-0000-4000-8000-000000000001";

const found = findShellImage(root);
requireFound("the kernel that has the bugs", found);

describe.skipIf(found instanceof MissingError)(
  "a bug that docs/kernel-bugs.md describes is still in the kernel:",
  () => {
    let folder = "";
    let image: ShellImage;
    let guests = 0;

    beforeAll(() => {
      if (found instanceof MissingError) return;
      folder = mkdtempSync(join(tmpdir(), "dirtmap-bugs-"));
      image = { ...found, initramfs: makeShellInitramfs(root, folder, "test/kernel-bugs") };
    });
    afterAll(() => {
      if (folder !== "") rmSync(folder, { recursive: true, force: true });
    });

    /** Boots a machine of its own, with huge pages. @param devices QEMU's options for them */
    async function boot(devices: readonly string[] = []): Promise<ShellGuest> {
      const guest = await ShellGuest.boot(image, join(folder, String(guests++)), devices);
      await guest.run("echo 8 >/proc/sys/vm/nr_hugepages");
      return guest;
    }

    describe("one that leaves the machine as it was:", () => {
      let guest: ShellGuest;
      beforeAll(async () => {
        guest = await boot(["-device", "intel-iommu", "-device", `edu,addr=${EDU.slice(-4)}`]);
      }, TEST_LIMIT_MS);
      afterAll(() => guest?.[Symbol.asyncDispose]());

      it.each([...shown.keys()].filter((program) => !APART.includes(program)))(
        "%s",
        { timeout: TEST_LIMIT_MS },
        async (program) => {
          expect(await guest.run(program)).toBe(shown.get(program));
        },
      );

      it("type1-stale", { timeout: TEST_LIMIT_MS }, async () => {
        const device = `/sys/bus/pci/devices/${EDU}`;
        await guest.run(`echo vfio-pci >${device}/driver_override; echo ${EDU} >/sys/bus/pci/drivers_probe`);
        expect(await guest.run(`type1-stale $(basename $(readlink ${device}/iommu_group)) ${EDU}`)).toBe(
          "mappings of 40 and 30 pages; bits set after those of the 70 pages: first read 0, second read 40\n",
        );
      });
    });

    it("leaf-loop: the read never returns, no signal ends it, its CPU stays in iova_bitmap_set, and an unmap of the IOAS waits for ever", {
      timeout: TEST_LIMIT_MS,
    }, async () => {
      await using guest = await boot();
      await guest.run("leaf-loop >/tmp/loop 2>&1 &");
      const started = await guest.run("until grep reader /tmp/loop; do sleep 0.1; done");
      const [reader, unmapper] = [...started.matchAll(/\d+/g)].map(([pid]) => Number(pid));
      const stateOf = async (pid: number) => fieldsOf(await guest.run(`cat /proc/${pid}/stat`));
      await until(async () => (await stateOf(unmapper)).state === "D");

      await guest.run(`kill -9 ${reader} ${unmapper}`);
      const killed = await stateOf(reader);
      const [start, end] = rangeOf(await guest.run("sort /proc/kallsyms | grep -A 1 ' iova_bitmap_set$'"));
      let inside = 0;
      for (let sample = 0; sample < 20; sample++) {
        const at = instructionPointers(
          await guest.monitor("human-monitor-command", { "command-line": "info registers -a" }),
        );
        if (at.some((ip) => ip >= start && ip < end)) inside++;
      }
      // An interrupt may be handled at the moment of a sample.
      expect(inside).toBeGreaterThanOrEqual(10);
      await until(async () => (await stateOf(reader)).systemTicks > killed.systemTicks + 100);
      expect((await stateOf(reader)).state).toBe("R");
      expect((await stateOf(unmapper)).state).toBe("D");
      expect(await guest.run("cat /tmp/loop")).toBe(started);
    });

    it("mtty-close: a device that was closed in RESUMING makes the kernel dereference a null pointer", {
      timeout: TEST_LIMIT_MS,
    }, async () => {
      await using guest = await boot();
      await guest.run(`echo ${MTTY} >/sys/class/mdev_bus/mtty/mdev_supported_types/mtty-1/create`);
      const command = `mtty-close $(basename $(readlink /sys/bus/mdev/devices/${MTTY}/iommu_group)) ${MTTY}`;
      expect(await guest.run(`${command}; echo $?`)).toBe(`opened again: RESUMING\nKilled\n${KILLED}\n`);
      expect(guest.kernelLog).toContain("BUG: kernel NULL pointer dereference");
      expect(guest.kernelLog).toMatch(/mtty_set_state\+/);
      // Its mutex is still locked.
      await guest.run(`${command} >/dev/null 2>&1 & echo $! >/tmp/next`);
      await until(async () => fieldsOf(await guest.run("cat /proc/$(cat /tmp/next)/stat")).state === "D");
    });
  },
);

test("each program beside this file is shown in docs/kernel-bugs.md", () => {
  const programs = readdirSync(join(root, "test/kernel-bugs")).filter((name) => name.endsWith(".c"));
  expect([...shown.keys()].map((program) => `${program}.c`).sort()).toEqual(programs.sort());
});

/** What a test looks at of /proc/PID/stat. */
function fieldsOf(stat: string): { readonly state: string; readonly systemTicks: number } {
  // The second field is the program's name, in parentheses.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return { state: fields[0], systemTicks: Number(fields[12]) };
}

/** The addresses of a function, from its line of /proc/kallsyms and the next. */
function rangeOf(symbols: string): readonly [bigint, bigint] {
  const [start, end] = symbols.split("\n", 2).map((line) => BigInt(`0x${line.split(" ")[0]}`));
  return [start, end];
}

/** Where each CPU is, as QEMU's monitor says. */
function instructionPointers(registers: unknown): readonly bigint[] {
  return [...String(registers).matchAll(/\bRIP=([0-9a-f]+)/g)].map(([, ip]) => BigInt(`0x${ip}`));
}

/** Waits until something holds; the test's own limit ends it otherwise. */
async function until(holds: () => Promise<boolean>): Promise<void> {
  while (!(await holds())) await new Promise((resolve) => setTimeout(resolve, 200));
}
