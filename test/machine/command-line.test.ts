import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { EXIT_CODES } from "../../src/cli/exit-codes.js";
import { makeCertificates, writeCertificates } from "../../src/migration/transport/certs.js";
import { Child } from "../support/child.js";
import { frameProxy, says, withText } from "../support/frame-proxy.js";

/* Real `dirtmap` processes, source and destination. */

const PROGRAM = fileURLToPath(new URL("../../../bin/dirtmap.js", import.meta.url));

const folder = mkdtempSync(join(tmpdir(), "dirtmap-cli-"));
const scenario = join(folder, "tiny.yaml");
beforeAll(() => {
  writeFileSync(
    scenario,
    `summary: small and slow
machine:
  memory: 16M
  fill: 0.1
  vcpus: { count: 1, rate: 1, footprint: 128K }
  iommus: [{ id: iommu0, format: amd-v1 }]
  devices:
    - { id: vf0, model: mlx5, iommu: iommu0, load: { rate: 1, footprint: 256K } }
    - { id: nic0, model: nic, iommu: iommu0, load: { rate: 1, footprint: 256K } }
migration: { trackers: { vf0: device }, downtimeLimit: 2s }
`,
  );
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const migrate = (...more: string[]) =>
  new Child(PROGRAM, "migrate", "--scenario", scenario, "--journal", folder, "--json", ...more);

/** It takes rounds and rounds: what is written in one can't be sent within the downtime limit. */
const SLOWLY = ["--bandwidth", "1M", "--downtime-limit", "20ms"];

/** `dirtmap receive` for one migration; its port. */
async function receive(...more: string[]) {
  const address = more.includes("--tls-folder") ? "tls://localhost:0" : "tcp://127.0.0.1:0";
  const child = new Child(PROGRAM, "receive", "--listen", address, "--journal", folder, "--json", ...more);
  const { address: actual } = await child.said("address");
  return { child, port: Number(new URL(String(actual)).port) };
}

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
        return says(frame, "HELLO") ? withText(frame, '"protocol":1', '"protocol":9') : frame;
      },
    });
    try {
      const line = await refused("--to", `tcp://127.0.0.1:${proxy.port}`);
      expect(line).toMatch(/speaks protocol 9 .* and this is 1 .*; use the same version on both sides/);
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

  it.each([
    ["resume", EXIT_CODES.failed.code, "failed"],
    ["abort", EXIT_CODES.indeterminate.code, "indeterminate"],
  ] as const)("at GO leaves the outcome to the operator: `dirtmap %s`", async (decision, code, result) => {
    const { child, port } = await receive();
    await using destination = child;
    const proxy = await frameProxy(port, {
      toDestination: (frame) => {
        if (!says(frame, "GO")) return frame;
        destination.kill("SIGKILL");
        return "cut";
      },
    });
    try {
      await using source = migrate("--decide", "20s", "--to", `tcp://127.0.0.1:${proxy.port}`);
      const [, migration] = await source.complained(/dirtmap resume ([0-9a-f]+)/);
      await using operator = new Child(PROGRAM, decision, migration, "--journal", folder, "--json");
      expect(await operator.ended).toBe(EXIT_CODES.done.code);
      expect(await operator.said("decision")).toMatchObject({ migration, decision });
      expect(await source.ended).toBe(code);
      expect(await source.said("result")).toMatchObject({ migration, result });
    } finally {
      proxy.close();
    }
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

/** What a process was started with, words apart by spaces; nothing where it is gone. */
function commandLine(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ");
  } catch {
    return "";
  }
}
