import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import {
  closeSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { PROGRAM } from "../../../test/support/program.js";
import { EventFd } from "../../sys/eventfd.js";
import { createMemfd } from "../../sys/memfd.js";
import { VFIO_DEVICE_FEATURE, VFIO_DEVICE_FEATURE_GET, VFIO_DEVICE_FEATURE_PROBE } from "../../uapi/vfio.js";
import { RawClient } from "../../vfio-user/raw-client.test.helper.js";
import { errnoOf, feature, mapDma } from "../../vfio-user/server/served.test.helper.js";
import { EXIT_CODES } from "../exit-codes.js";

/*
 * What people and clients get wrong, with real `dirtmap device` processes: a clear line, the right errno, and the server
 * goes on.
 */

const LIMIT_MS = 30_000;
const PAGE = 4096n;

const folder = mkdtempSync(join(tmpdir(), "dirtmap-bad-input-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** A `dirtmap device` that may come up, or not. */
class Device implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #ended: Promise<unknown[]>;
  stderr = "";

  constructor(...args: readonly string[]) {
    this.#child = spawn(process.execPath, [PROGRAM, "device", ...args], { stdio: ["ignore", "ignore", "pipe"] });
    this.#child.stderr?.on("data", (text: Buffer) => {
      this.stderr += text.toString();
    });
    this.#ended = once(this.#child, "close");
  }

  /** Waits for a line on standard error. */
  async said(like: RegExp): Promise<string> {
    for (const until = performance.now() + LIMIT_MS; performance.now() < until; ) {
      const line = this.stderr.split("\n").find((candidate) => like.test(candidate));
      if (line !== undefined) return line;
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    throw new Error(`it never said ${like}: ${this.stderr}`);
  }

  /** The exit code of one that does not come up, and the one line that it says. */
  async refused(): Promise<{ code: unknown; line: string }> {
    const [code] = await this.#ended;
    const lines = this.stderr.trimEnd().split("\n");
    expect(lines).toHaveLength(1);
    return { code, line: lines[0] };
  }

  async kill(signal: NodeJS.Signals): Promise<void> {
    this.#child.kill(signal);
    await this.#ended;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.kill("SIGKILL");
  }
}

async function serving(...args: readonly string[]): Promise<Device> {
  const device = new Device(...args);
  await device.said(/^serving/);
  return device;
}

function disk(name: string, bytes: number): string {
  const path = join(folder, name);
  writeFileSync(path, new Uint8Array(bytes));
  return path;
}

describe.runIf(process.platform === "linux")("dirtmap device", () => {
  it("refuses a socket path where a server listens, which goes on, and takes over what a killed one left", async () => {
    const path = join(folder, "taken");
    const args = ["nic", "--socket", path, "--option", "rate=0"];
    await using first = await serving(...args);
    await using second = new Device(...args);
    expect(await second.refused()).toEqual({
      code: EXIT_CODES.usage.code,
      line: expect.stringMatching(
        /a server listens at '.*taken' already: process \d+ \(.*device nic .*\); stop it \(kill \d+\)/,
      ),
    });
    using client = RawClient.open(path);
    await first.kill("SIGKILL");
    expect(() => client.next()).toThrow(expect.objectContaining({ code: "CLOSED" }));
    await using third = await serving(...args);
    expect(await third.said(/taken over/)).toMatch(/taken was left behind by a server that is gone/);
    RawClient.open(path)[Symbol.dispose]();
  });

  it.each([
    ["is missing", () => join(folder, "nowhere"), /nowhere/],
    ["is no multiple of the block size", () => disk("odd", 4097), /512/],
    ["is empty", () => disk("empty", 0), /512|empty/],
    [
      "is a directory",
      () => {
        const path = join(folder, "directory");
        mkdirSync(path, { recursive: true });
        return path;
      },
      /directory: it is a folder/,
    ],
  ])("refuses a backing file that %s", async (_what, file, like) => {
    await using device = new Device("nvme", "--socket", join(folder, "disk"), "--option", `file=${file()}`);
    const { code, line } = await device.refused();
    expect(code).toBe(EXIT_CODES.usage.code);
    expect(line).toMatch(like);
  });

  it("refuses a backing file that another server has locked, which goes on", async () => {
    const file = disk("locked", 65536);
    await using first = await serving("nvme", "--socket", join(folder, "first"), "--option", `file=${file}`);
    await using second = new Device("nvme", "--socket", join(folder, "second"), "--option", `file=${file}`);
    const { code, line } = await second.refused();
    expect(code).toBe(EXIT_CODES.usage.code);
    expect(line).toMatch(/locked/);
    RawClient.open(join(folder, "first"))[Symbol.dispose]();
    expect(first.stderr).not.toMatch(/failed/);
  });

  it("answers each mistake of a client with its errno and a line in its log, and goes on", async () => {
    const path = join(folder, "mistakes");
    await using device = await serving("nic", "--socket", path, "--option", "rate=0");
    using newer = RawClient.connect(path);
    expect(errnoOf(() => newer.version({}, { major: 1 }))).toBe("EPROTONOSUPPORT");
    expect(await device.said(/VERSION/)).toMatch(
      /EPROTONOSUPPORT: speak version 1\.0; upgrade the server: this server speaks 0\.0/,
    );
    expect(() => newer.next()).toThrow(expect.objectContaining({ code: "CLOSED" }));

    using client = RawClient.open(path);
    const memory = createMemfd("memory", 2 * Number(PAGE));
    mapDma(client, { address: 0x10000n, size: 2n * PAGE }, [memory]);
    expect(errnoOf(() => mapDma(client, { address: 0x11000n, size: PAGE }, [memory]))).toBe("EEXIST");
    expect(await device.said(/EEXIST/)).toMatch(/map 0x1000 bytes at 0x11000: there is a region at 0x10000; unmap it/);
    expect(errnoOf(() => mapDma(client, { address: 0x20000n, size: 4n * PAGE }, [memory]))).toBe("EINVAL");
    expect(await device.said(/too short/)).toMatch(/0x4000 bytes at 0x20000 from 0x0 of a file of 0x2000 bytes/);
    const short = openSync(join(folder, "short"), "w+");
    ftruncateSync(short, 100);
    expect(errnoOf(() => mapDma(client, { address: 0x20000n, size: PAGE }, [short]))).toBe("EINVAL");
    using eventFd = EventFd.create();
    for (const fd of [eventFd.fd, client.socket.fd]) {
      expect(errnoOf(() => mapDma(client, { address: 0x20000n, size: PAGE }, [fd]))).toBe("EINVAL");
    }
    expect(await device.said(/no memory/)).toMatch(/from a descriptor that is no memory; send a memfd's/);
    for (const fd of [memory, short]) closeSync(fd);

    const { DMA_LOGGING_REPORT } = VFIO_DEVICE_FEATURE;
    expect(errnoOf(() => feature(client, DMA_LOGGING_REPORT | VFIO_DEVICE_FEATURE_PROBE))).toBe("ENOTTY");
    expect(device.stderr).not.toMatch(/ENOTTY/);
    const report = new Uint8Array(32);
    expect(errnoOf(() => feature(client, DMA_LOGGING_REPORT | VFIO_DEVICE_FEATURE_GET, report))).toBe("ENOTTY");
    expect(await device.said(/ENOTTY/)).toMatch(
      /VFIO_USER_DEVICE_FEATURE: ENOTTY: use feature 8; this device lacks it/,
    );

    // What was right before is still there, and so is the server.
    expect(errnoOf(() => mapDma(client, { address: 0x10000n, size: PAGE }))).toBe("EEXIST");
    expect(client.regionRead(0, 0, 4)).toHaveLength(4);
    expect(readFileSync(join(folder, "short"))).toHaveLength(100);
  });
});
