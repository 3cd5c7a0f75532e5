import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { makeCertificates, writeCertificates } from "../../src/certs/certs.js";
import { EXIT_CODES } from "../../src/cli/exit-codes.js";
import { Child } from "../support/child.js";
import { CommandLine } from "../support/command-line.js";
import { frameProxy, reworded, says } from "../support/frame-proxy.js";
import { PROGRAM } from "../support/program.js";

/* Real `dirtmap` processes, source and destination. */

const folder = mkdtempSync(join(tmpdir(), "dirtmap-cli-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const commands = new CommandLine(folder);
const migrate = (...more: string[]) => commands.migrate(...more);
const receive = (...more: string[]) => commands.receive(...more);

/** It takes rounds and rounds: what is written in one can't be sent within the downtime limit. */
const SLOWLY = ["--bandwidth", "1M", "--downtime-limit", "20ms"];

describe("bad input is refused in one line with exit code 2, and nothing is started:", () => {
  /** Returns the line. */
  async function refused(...args: string[]): Promise<string> {
    await using source = migrate("--quiet", ...args);
    expect(await source.ended).toBe(EXIT_CODES.usage.code);
    const { error, ...rest } = await source.said("error");
    expect(rest).toMatchObject({ schemaVersion: 1, result: "failed" });
    expect(error).toMatchObject({ code: expect.any(String), message: expect.any(String) });
    expect(source.errors.trimEnd().split("\n")).toHaveLength(1);
    expect(source.errors).toMatch(/^dirtmap: /);
    return source.errors;
  }

  it("nobody listens at the destination", async () => {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const { port } = server.address() as { port: number };
    await new Promise((resolve) => server.close(resolve));
    expect(await refused("--to", `tcp://127.0.0.1:${port}`)).toMatch(/nothing listens|refused|dirtmap receive/);
  });

  it("a destination of another protocol version", async () => {
    const { child, port } = await receive();
    await using _child = child;
    // An older source: its HELLO says so. Of the same length, so only the checksums have to be made anew.
    const proxy = await frameProxy(port, {
      toDestination: (frame) => {
        return says(frame, "HELLO") ? reworded(frame, /"protocol":\d/, () => '"protocol":9') : frame;
      },
    });
    try {
      const line = await refused("--to", `tcp://127.0.0.1:${proxy.port}`);
      expect(line).toMatch(/speaks protocol 9 .* and this is \d+ .*; use the same version on both sides/);
    } finally {
      proxy.close();
    }
  });

  it("a certificate of another CA, and one that has expired", async () => {
    const folders = ["good", "strange", "expired"].map((name) => join(folder, name));
    const [good, strange, expired] = folders;
    await writeCertificates(good, await makeCertificates({ hosts: ["localhost"] }));
    await writeCertificates(strange, await makeCertificates({ hosts: ["localhost"] }));
    await writeCertificates(expired, await makeCertificates({ hosts: ["localhost"], days: 0 }));
    const { child, port } = await receive("--tls-folder", good);
    await using _child = child;
    const to = `tls://localhost:${port}`;
    expect(await refused("--to", to, "--tls-folder", strange)).toMatch(/certificate/);
    expect(await refused("--to", to, "--tls-folder", expired)).toMatch(/expired/);
    await using source = migrate("--quiet", "--to", to, "--tls-folder", good);
    expect(await source.said("result")).toMatchObject({ result: "completed", verified: true });
  });
});

describe("Ctrl-C", () => {
  it("ends with exit code 130, and says that the source goes on running", async () => {
    await using source = migrate(...SLOWLY);
    await source.complained(/round 0/);
    source.kill("SIGINT");
    expect(await source.ended).toBe(EXIT_CODES.cancelled.code);
    expect(source.errors).toMatch(/the source goes on running/);
    expect(await source.said("result")).toMatchObject({ result: "cancelled", error: { code: "CANCELLED" } });
  });
});

describe("a destination that is killed", () => {
  it("while pages travel ends the migration with exit code 1 and a clear message", async () => {
    const { child, port } = await receive();
    await using destination = child;
    await using source = migrate(...SLOWLY, "--to", `tcp://127.0.0.1:${port}`);
    await source.complained(/round 0/);
    destination.kill("SIGKILL");
    expect(await source.ended).toBe(EXIT_CODES.failed.code);
    const { result, error } = await source.said("result");
    expect(result).toBe("failed");
    expect((error as { message: string }).message).toMatch(/connection|channel/);
  });
});

describe("a scenario whose devices run in processes of their own", () => {
  it("is migrated by one command, verified, and no process is left", { timeout: 120_000 }, async () => {
    const file = join(folder, "served.yaml");
    writeFileSync(
      file,
      `machine:
  memory: 16M
  vcpus: { count: 1, rate: 1, footprint: 128K }
  devices:
    - { id: vf0, model: mlx5, serve: true, load: { rate: 1, footprint: 256K } }
    - { id: served-nic, model: nic, serve: true, dma: messages, load: { rate: 1, footprint: 256K } }
migration: { downtimeLimit: 2s }
`,
    );
    await using source = new Child(PROGRAM, "migrate", "--scenario", file, "--journal", folder, "--json");
    expect(await source.ended).toBe(EXIT_CODES.done.code);
    const report = await source.said("result");
    expect(report).toMatchObject({ result: "completed", verified: true });
    expect(report.devices).toMatchObject([
      { id: "vf0", tracker: "device" },
      { id: "served-nic", tracker: "iommu" },
    ]);
    const left = readdirSync("/proc").filter((pid) => commandLine(pid).includes("--id served-nic"));
    expect(left).toEqual([]);
  });
});

describe("a source that is killed", () => {
  it("leaves no socket, disk or feed that the next command does not remove, and its journal", {
    timeout: 300_000,
  }, async () => {
    const root = mkdtempSync(join(tmpdir(), "dirtmap-killed-"));
    const before = { ...process.env };
    Object.assign(process.env, { TMPDIR: root, XDG_RUNTIME_DIR: root });
    const journals = join(root, "journals");
    const left = () => readdirSync(root, { recursive: true }).map(String);
    try {
      await using destination = new Child(
        PROGRAM,
        "receive",
        "--listen",
        "tcp://127.0.0.1:0",
        "--journal",
        root,
        "--shared-folder",
        root,
        "--json",
      );
      const { address } = await destination.said("address");
      const disk = ["--scenario", "queued-io", "--memory", "64M", "--to", String(address)];
      await using source = new Child(PROGRAM, "migrate", ...disk, ...SLOWLY, "--journal", journals, "--json");
      const open = () => left().filter((file) => /\.sock$|\.feed$|\.img$/.test(file));
      await expect.poll(open, { timeout: 120_000 }).toHaveLength(3);
      source.kill("SIGKILL");
      await source.ended;
      // A feed that nobody listens at is left alone for a second: it may be about to be.
      await new Promise((resolve) => setTimeout(resolve, 1100));
      await using list = new Child(PROGRAM, "list", "--journal", journals, "--json");
      await list.ended;
      expect(left().filter((file) => /^dirtmap-|\.sock$|\.feed$/.test(file))).toEqual([]);
      expect(left().filter((file) => file.startsWith("journals/"))).toEqual([
        expect.stringMatching(/^journals\/[0-9a-f]+\.source\.json$/),
      ]);
    } finally {
      for (const name of ["TMPDIR", "XDG_RUNTIME_DIR"]) {
        if (before[name] === undefined) delete process.env[name];
        else process.env[name] = before[name];
      }
      rmSync(root, { recursive: true, force: true });
    }
  });
});

/** What a process was started with, words apart by spaces; nothing where it is gone. */
function commandLine(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ");
  } catch {
    return "";
  }
}
