import { once } from "node:events";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import sqlite from "node-sqlite3-wasm";
import { afterAll, describe, expect, it } from "vitest";
import { dirtmap, startDirtmap as start } from "../../test/support/program.js";
import { Journal } from "../migration/journal.js";
import { EXIT_CODES } from "./exit-codes.js";

const COMMANDS = [
  ...["migrate", "receive", "plan", "probe", "device", "bench", "recommend", "scenarios", "certs"],
  ...["list", "resume", "abort"],
];

const folder = mkdtempSync(join(tmpdir(), "dirtmap-cli-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const run = (...args: readonly string[]) => dirtmap(args);

describe("help", () => {
  it.concurrent.each(COMMANDS)("of %s has examples, which call it", async (command) => {
    const { code, stdout } = await run(command, "--help");
    expect(code).toBe(0);
    expect(stdout).toMatch(new RegExp(`Examples:\n(  dirtmap .*\n?)*  dirtmap ${command}`));
  });

  it("has the table of exit codes, and every command", async () => {
    const { code, stdout } = await run("--help");
    expect(code).toBe(0);
    for (const { code: number, means } of Object.values(EXIT_CODES)) expect(stdout).toContain(`${number}  ${means}`);
    for (const command of COMMANDS) expect(stdout).toMatch(new RegExp(`^  ${command} `, "m"));
  });

  it.each([
    ["device", "--help"],
    ["help", "device"],
  ])("of a device lists the models: dirtmap %s %s", async (...args) => {
    const { code, stdout } = await run(...args);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^Models, and their options:\n {2}mlx5 /m);
  });

  it("is what a bare call prints, as wrong usage", async () => {
    const { code, stderr } = await run();
    expect(code).toBe(2);
    expect(stderr).toContain("Usage: dirtmap");
  });
});

describe("wrong usage is refused in one line that says what would work, with exit code 2", () => {
  it.concurrent.each([
    ["an unknown command", ["migrat"], /unknown command 'migrat' \(Did you mean migrate\?\); see --help/],
    ["an unknown option", ["migrate", "--memry", "1G"], /unknown option '--memry' \(Did you mean --memory\?\)/],
    [
      "an unknown tracker",
      ["migrate", "--tracker", "vf0=immou"],
      /--tracker .*there is no tracker 'immou'; did you mean 'iommu'\?/,
    ],
    ["a tracker for no device", ["migrate", "--tracker", "iommu"], /'iommu' has no device; write DEV=VALUE/],
    [
      "an unknown device",
      ["migrate", "--tracker", "vf9=iommu"],
      /there is no device 'vf9'; did you mean 'vf0'\? \(there are: vf0, nic0, disk0, gpu0\)/,
    ],
    ["an unknown device's granule", ["plan", "--granule", "x=4K"], /there is no device 'x'/],
    [
      "a size that is none",
      ["migrate", "--memory", "much"],
      /--memory <size>: 'much' is not a size; write bytes, or 4K, 2M, 1G/,
    ],
    [
      "memory below the least",
      ["migrate", "--memory", "64K"],
      /guest memory of 65536 bytes is not possible; give at least \dM/,
    ],
    [
      "memory that does not fit",
      ["migrate", "--memory", "1000T"],
      /does not fit: .* available, and the destination's is needed too; give --memory \d+M or less/,
    ],
    [
      "a duration without unit",
      ["migrate", "--downtime-limit", "50"],
      /--downtime-limit .*'50' is not a duration; write 50ms/,
    ],
    [
      "a bandwidth that is none",
      ["migrate", "--bandwidth", "0"],
      /'0' is not a bandwidth; write bytes per second as 500M/,
    ],
    ["too many channels", ["migrate", "--channels", "99"], /'99' is out of range; give 1 to 16/],
    [
      "an unknown mode",
      ["migrate", "--untracked", "vf0=suspnd"],
      /there is no mode 'suspnd'; did you mean 'suspend'\?/,
    ],
    [
      "a tracker under a design that asks no device",
      ["plan", "--scenario", "case-b", "--design", "type1", "--tracker", "vf0=device"],
      /the tracker for vf0 has no effect under the design type1.*leave it out, or use another design/,
    ],
    [
      "a suspension under a design that counts everything as dirty",
      ["migrate", "--scenario", "case-b", "--design", "type1", "--untracked", "vf0=suspend"],
      /what happens untracked for vf0 has no effect under the design type1/,
    ],
    ["an unknown design", ["plan", "--design", "type2"], /there is no design 'type2'; did you mean 'type1'\?/],
    [
      "an address that is none",
      ["migrate", "--to", "somewhere"],
      /'somewhere' is no address of a migration; write tls:\/\/HOST:PORT/,
    ],
    [
      "plain TCP to elsewhere",
      ["migrate", "--to", "tcp://192.0.2.1:7700"],
      /unencrypted; use tls:\/\/, or add --insecure/,
    ],
    [
      "TLS without certificates",
      ["migrate", "--to", "tls://192.0.2.1:7700"],
      /certificate and key, and the CA; give a folder made by `dirtmap certs`/,
    ],
    [
      "certificates that are not there",
      ["receive", "--listen", "tls://127.0.0.1:0", "--tls-folder", join(folder, "none")],
      /can't be read: ENOENT/,
    ],
    ["a device of a view, which shows all", ["top", "--device", "3b:00.1"], /unknown option '--device'/],
    ["an unknown host", ["probe", "--host", "linus"], /there is no host 'linus'; did you mean 'linux'\?/],
    [
      "a scenario's option for this machine",
      ["plan", "--host", "linux", "--memory", "1G"],
      /--memory describes a machine of the emulated host.*; leave out --memory, or --host linux/,
    ],
    [
      "this machine's device on the emulated host",
      ["plan", "--device", "3b:00.1"],
      /--device is for devices of this machine.*; add --host linux/,
    ],
    [
      "a scenario for served devices",
      ["probe", "--host", "vfio-user:/nowhere", "--scenario", "mixed"],
      /--scenario describes a machine of the emulated host.*; leave out --scenario, or --host vfio-user:\/nowhere/,
    ],
    ["served devices without a socket", ["probe", "--host", "vfio-user:"], /names no socket; write vfio-user:PATH/],
    ["a socket that is named twice", ["probe", "--host", "vfio-user:a,a"], /'a' is named twice; name it once/],
    ["XML for the emulated host", ["plan", "--only", "libvirt"], /--only is for devices of this machine/],
    ["a migration of this machine's devices", ["migrate", "--host", "linux"], /unknown option '--host'; see --help/],
    ["an unknown scenario", ["probe", "--scenario", "mixd"], /there is no scenario 'mixd'; did you mean 'mixed'\?/],
    ["a migration that is not known", ["resume", "0000", "--journal", folder], /there is no migration '0000' in /],
  ])("%s", async (_, args, expected) => {
    const { code, stdout, stderr } = await run(...args);
    expect({ code, stdout, lines: stderr.trimEnd().split("\n").length }).toEqual({ code: 2, stdout: "", lines: 1 });
    expect(stderr).toMatch(/^dirtmap: /);
    expect(stderr).toMatch(expected);
  });

  it("a malformed scenario, with the line", async () => {
    const file = join(folder, "broken.yaml");
    writeFileSync(file, "machine:\n  memory: 256M\n  vcpus: { count: 1 }\n  devices: []\n  iommuss: []\n");
    const { code, stderr } = await run("migrate", "--scenario", file);
    expect(code).toBe(2);
    expect(stderr).toMatch(/broken\.yaml:5:3: machine\.iommuss: there is no such field; did you mean 'iommus'\?/);
  });

  it("a store of a newer Dirtmap, which says to upgrade", async () => {
    const store = join(folder, "newer.db");
    const db = new sqlite.Database(store);
    db.exec("CREATE TABLE run (id); PRAGMA application_id = 0x44697274; PRAGMA user_version = 99");
    db.close();
    for (const command of ["recommend", "migrate", "predict", "serve"]) {
      const { code, stderr } = await run(command, "--store", store);
      expect({ command, code }).toEqual({ command, code: 2 });
      expect(stderr).toMatch(
        /^dirtmap: the store .*newer\.db is of version 99, .*; upgrade Dirtmap, or give another --store\n$/,
      );
    }
  });

  it("a port in use", async () => {
    const server = createServer().listen(0, "127.0.0.1");
    await once(server, "listening");
    try {
      const { port } = server.address() as { port: number };
      const { code, stderr } = await run("receive", "--listen", `tcp://127.0.0.1:${port}`);
      expect(code).toBe(2);
      expect(stderr).toMatch(
        new RegExp(`^dirtmap: can't listen on tcp://127.0.0.1:${port}: the port is in use; choose another`),
      );
    } finally {
      server.close();
    }
  });

  it("and with --json also as an object on standard output", async () => {
    const { code, stdout } = await run("migrate", "--tracker", "vf9=iommu", "--json");
    expect(code).toBe(2);
    expect(JSON.parse(stdout)).toMatchObject({
      schemaVersion: 1,
      result: "failed",
      error: { code: "UNKNOWN_DEVICE", message: "there is no device 'vf9'" },
    });
  });
});

it("XML and JSON at once are wrong usage", async () => {
  const { code, stderr } = await run("plan", "--host", "linux", "--only", "libvirt", "--json");
  expect(code).toBe(2);
  expect(stderr).toMatch(/'--only <vmm>' cannot be used with option '--json'/);
});

describe("scenarios", () => {
  it("are listed with what they show, as JSON too", async () => {
    const { code, stdout } = await run("scenarios", "--json");
    expect(code).toBe(0);
    const { schemaVersion, scenarios } = JSON.parse(stdout);
    expect(schemaVersion).toBe(1);
    expect(scenarios).toContainEqual({ name: "mixed", summary: expect.stringContaining("an mlx5 VF") });
  });
});

// On a machine with an iommufd this would open, and so reset, whatever devices lie ready there.
describe.skipIf(process.platform !== "linux" || existsSync("/dev/iommu"))("this machine, without /dev/iommu", () => {
  it("is probed all the same, and says why there is none and how to get it", async () => {
    const { code, stdout, stderr } = await run("probe", "--host", "linux");
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    const [line, missing, remedy] = stdout.split("\n");
    expect(line).toMatch(/^Linux \S+, no \/dev\/iommu, /);
    expect(missing).toMatch(/^ {2}missing: there is no \/dev\/iommu: \S/);
    expect(remedy).toMatch(/^ {4}\S/);
    expect(stdout).toMatch(/^(no device of this machine is assigned, or could be|device +what +driver)/m);
  });

  it("is probed without the rights of root", async () => {
    const nobody = process.geteuid?.() === 0 ? { uid: 65534, gid: 65534 } : {};
    const { code, stdout } = await start(["probe", "--host", "linux", "--json"], nobody).ended;
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({
      schemaVersion: 1,
      host: "linux",
      iommufd: false,
      missing: expect.arrayContaining([expect.objectContaining({ code: expect.stringMatching(/^IOMMUFD_/) })]),
      devices: expect.any(Array),
      mdevTypes: expect.any(Array),
    });
  });

  it("is planned for, and a device that it doesn't have is wrong usage", async () => {
    const plan = await run("plan", "--host", "linux", "--json");
    expect(plan.code).toBe(0);
    expect(JSON.parse(plan.stdout)).toMatchObject({ schemaVersion: 1, host: "linux", devices: expect.any(Array) });
    const options = await run("plan", "--host", "linux", "--only", "qemu");
    if (JSON.parse(plan.stdout).devices.length === 0) {
      expect(options).toMatchObject({
        code: 0,
        stdout: "",
        stderr: expect.stringMatching(/^dirtmap: no device of this/),
      });
    }
    const none = await run("plan", "--host", "linux", "--tracker", "ffff:ff:1f.7=iommu");
    expect(none.code).toBe(2);
    expect(none.stderr).toMatch(/this machine has no device 'ffff:ff:1f\.7' that is or could be assigned; there/);
  });
});

describe("certs", () => {
  it("makes a set that a destination can listen with, and does not overwrite it", async () => {
    const certs = join(folder, "certs");
    const made = await run("certs", certs, "--name", "localhost", "--json");
    expect(made.code).toBe(0);
    expect(JSON.parse(made.stdout).files).toContain(join(certs, "server-key.pem"));

    const { child, ended } = start(["receive", "--listen", "tls://localhost:0", "--tls-folder", certs, "--json"]);
    const [line] = (await once(child.stdout, "data")) as [string];
    expect(JSON.parse(line).address).toMatch(/^tls:/);
    child.kill("SIGINT");
    await ended;

    const again = await run("certs", certs);
    expect(again.code).toBe(2);
    expect(again.stderr).toMatch(/ca\.pem|server\.pem|server-key\.pem/);
  });
});

describe("receive", () => {
  it("says where it listens, ends on Ctrl-C, and then with exit code 130", async () => {
    const { child, ended } = start(["receive", "--listen", "tcp://127.0.0.1:0", "--json"]);
    const [line] = (await once(child.stdout, "data")) as [string];
    expect(JSON.parse(line)).toEqual({
      schemaVersion: 1,
      event: "listening",
      address: expect.stringMatching(/^tcp:\/\/127\.0\.0\.1:[1-9]\d*$/),
    });
    child.kill("SIGINT");
    expect(await ended).toMatchObject({ code: 130 });
  });

  it("ends where no source comes in time", async () => {
    const { code, stderr } = await run("receive", "--listen", "tcp://127.0.0.1:0", "--wait", "50ms");
    expect(code).toBe(1);
    expect(stderr).toMatch(/dirtmap: no source came within 50 ms\n$/);
  });
});

describe("dirtmap list", () => {
  it("says of each migration what it waits for, and what to type; of those that are over only if asked", async () => {
    const journals = join(folder, "journals");
    Journal.source(journals, "1f0c93ab", "tls://dst:7700").record("given-up");
    Journal.destination(journals, "2e0d84bc", "10.0.0.1:4242").record("discarded");
    writeFileSync(join(journals, "3d1e75cd.source.json"), "?");
    const { code, stdout } = await run("list", "--journal", journals);
    expect(code).toBe(0);
    expect(stdout.replaceAll(/\d+ s/g, "N s")).toBe(
      `migration  side    state     age  process
1f0c93ab   source  given-up  N s  ${process.pid} lives
    paused: \`resume\` if the machine does not run at tls://dst:7700 and never will, \`abort\` if it does
    dirtmap resume 1f0c93ab --journal ${journals}
    dirtmap abort 1f0c93ab --journal ${journals}
3d1e75cd   source  ?         ?    ?
    ${journals}/3d1e75cd.source.json is not a whole journal: it has 1 of 16384 bytes; find out by hand on which side the machine runs
`,
    );
    const all = await run("list", "--journal", journals, "--all");
    expect(all.stdout).toMatch(
      /2e0d84bc {3}destination {2}discarded .*\n {4}the machine never ran here and never will\n/,
    );
  });

  it("of a folder that is not there has nothing to list, and doesn't make it", async () => {
    const { code, stdout } = await run("list", "--journal", join(folder, "none"));
    expect([code, stdout]).toEqual([0, `no migration in ${join(folder, "none")} waits or goes on\n`]);
    expect(existsSync(join(folder, "none"))).toBe(false);
  });
});
