import { describe, expect, it } from "vitest";
import { UsageError } from "../errors.js";
import { loadScenario, parseScenario, scenarioNames } from "./scenario.js";

const GOOD = `summary: one NIC
machine:
  memory: 256M
  vcpus: { count: 1 }
  iommus:
    - { id: iommu0, format: amd-v1 }
  devices:
    - id: nic0
      model: nic
      iommu: iommu0
      load: { rate: 20, footprint: 8M }
migration:
  trackers: { nic0: iommu }
  granules: { nic0: 4K }
  downtimeLimit: 50ms
  bandwidth: 10Gbit
`;

function parse(text: string) {
  return parseScenario(text, { file: "s.yaml", folder: "/somewhere" });
}

/** The message that the good scenario gives with one piece of text replaced. */
function refusal(from: string, to: string): string {
  expect(GOOD).toContain(from);
  try {
    parse(GOOD.replace(from, to));
  } catch (error) {
    expect(error).toBeInstanceOf(UsageError);
    expect((error as UsageError).message).not.toContain("\n");
    return (error as UsageError).message;
  }
  throw new Error("it was accepted");
}

describe("a scenario that is well-formed", () => {
  it("has its quantities in bytes, milliseconds and bytes per second", () => {
    const { name, machine, migration } = parse(GOOD);
    expect(name).toBe("s");
    expect(machine.memory).toBe(256 * 2 ** 20);
    expect(machine.devices[0].load).toEqual({ rate: 20, footprint: 8 * 2 ** 20 });
    expect(migration.granules).toEqual({ nic0: 4096 });
    expect(migration.downtimeLimit).toBe(50);
    expect(migration.bandwidth).toBe(1.25e9);
  });

  it("may leave the migration to the defaults", () => {
    const { migration } = parse(GOOD.slice(0, GOOD.indexOf("migration:")));
    expect(migration).toMatchObject({ policy: "iommu-first", domain: "per-device", downtimeLimit: 300, channels: 2 });
    expect(migration.bandwidth).toBeUndefined();
  });

  it("may say that the bandwidth has no limit", () => {
    expect(parse(GOOD.replace("10Gbit", "unlimited")).migration.bandwidth).toBeUndefined();
  });

  it("names sockets relative to its own folder", () => {
    const { machine } = parse(
      GOOD.replace("iommu: iommu0", "socket: here/nic\n      destinationSocket: /run/nic\n      dma: messages"),
    );
    expect(machine.devices[0]).toMatchObject({ socket: "/somewhere/here/nic", destinationSocket: "/run/nic" });
  });

  it("names a disk's file relative to its own folder", () => {
    const { machine } = parse(GOOD.replace("model: nic", "model: blk\n      file: disk.img"));
    expect(machine.devices[0]).toMatchObject({ model: "blk", file: "/somewhere/disk.img" });
    const nvme = parse(GOOD.replace("model: nic", "model: nvme\n      file: disk.img"));
    expect(nvme.machine.devices[0]).toMatchObject({ model: "nvme", file: "/somewhere/disk.img" });
  });
});

describe("a malformed scenario is refused with file, line, column and field", () => {
  it.each([
    [
      "a misspelt field",
      "memory:",
      "memmory:",
      /^s\.yaml:3:3: machine\.memmory: there is no such field; did you mean 'memory'\? .*\(and 1 more problem\)$/,
    ],
    [
      "a missing field",
      "memory: 256M",
      "fill: 1",
      /^s\.yaml:2:1: machine\.memory: is missing; a number goes here: guest RAM$/,
    ],
    [
      "a field too many",
      "format: amd-v1",
      "format: amd-v1, iotbl: 4",
      /^s\.yaml:6:37: machine\.iommus\[0\]\.iotbl: there is no such field; did you mean 'iotlb'\?/,
    ],
    [
      "a field that another model has",
      "model: nic",
      "model: nic\n      dmaLogging: {}",
      /^s\.yaml:10:7: machine\.devices\[0\]\.dmaLogging: there is no such field/,
    ],
    [
      "an unknown model",
      "model: nic",
      "model: nick",
      /^s\.yaml:9:7: machine\.devices\[0\]\.model: 'nick' is not known; did you mean 'nic'\? \(there are: mlx5, nic, blk, vgpu, replay, nvme, dma-engine, vfio-user\)/,
    ],
    [
      "a missing model",
      "model: nic",
      "p2pTargets: []",
      /^s\.yaml:8:7: machine\.devices\[0\]\.model: is missing; one of mlx5, nic, blk, vgpu, replay, nvme, dma-engine, vfio-user goes here/,
    ],
    [
      "a device of somebody else's that is nowhere",
      "model: nic\n      iommu: iommu0",
      "model: vfio-user",
      /machine\.devices\[0\]\.socket: is missing: where it is served/,
    ],
    [
      "a device of somebody else's that is to be served",
      "model: nic\n      iommu: iommu0",
      "model: vfio-user\n      serve: true",
      /machine\.devices\[0\]\.serve: someone else serves it: give its socket instead/,
    ],
    [
      "a log for a device in another process",
      "model: nic\n      iommu: iommu0",
      "model: mlx5\n      serve: true\n      dmaLogging: { maxRanges: 2 }",
      /machine\.devices\[0\]\.dmaLogging: it is in another process, and its log is as its server has made it/,
    ],
    [
      "a driver's device that is to write to a peer",
      "model: nic",
      "model: nvme\n      p2pTargets: [nic0]",
      /machine\.devices\[0\]\.p2pTargets: its driver queues nothing for peers/,
    ],
    [
      "a driver's device with too little memory",
      "model: nic\n      iommu: iommu0\n      load: { rate: 20, footprint: 8M }",
      "model: dma-engine\n      iommu: iommu0\n      load: { rate: 20, footprint: 512K }",
      /machine\.devices\[0\]\.load: its driver's rings and buffers take a footprint of 1M at least/,
    ],
    [
      "a driver's device without a vCPU",
      GOOD.slice(GOOD.indexOf("vcpus"), GOOD.indexOf("load")),
      GOOD.slice(GOOD.indexOf("vcpus"), GOOD.indexOf("load"))
        .replace("count: 1", "count: 0")
        .replace("nic\n", "nvme\n"),
      /machine\.devices\[0\]\.model: its driver runs on a vCPU, and there is none \(vcpus\.count\)/,
    ],
    [
      "a BAR whose size is no power of two",
      "model: nic",
      "model: dma-engine\n      memory: 96K",
      /machine\.devices\[0\]\.memory: a power of two/,
    ],
    [
      "an unknown format",
      "amd-v1",
      "amd-v2",
      /^s\.yaml:6:21: machine\.iommus\[0\]\.format: 'amd-v2' is not known; did you mean 'amd-v1'\?/,
    ],
    [
      "an unknown IOMMU",
      "iommu: iommu0",
      "iommu: iommu1",
      /^s\.yaml:10:7: machine\.devices\[0\]\.iommu: there is no IOMMU 'iommu1' \(there are: iommu0\)/,
    ],
    [
      "no IOMMU",
      "iommu: iommu0",
      "p2pTargets: []",
      /machine\.devices\[0\]\.iommu: it is behind none \(there are: iommu0\)/,
    ],
    [
      "an IOMMU of a device in another process",
      "model: nic",
      "model: nic\n      serve: true",
      /machine\.devices\[0\]\.iommu: it is in another process, behind no IOMMU of this machine/,
    ],
    [
      "a device that is served, and for which a process is started",
      "iommu: iommu0",
      "serve: true\n      socket: there",
      /machine\.devices\[0\]\.socket: a process is started for it \(serve\): leave out one of the two/,
    ],
    [
      "a destination's socket of a device in this process",
      "iommu: iommu0",
      "iommu: iommu0\n      destinationSocket: there",
      /machine\.devices\[0\]\.destinationSocket: it is for a device in another process: give a socket as well/,
    ],
    [
      "a number that is text",
      "rate: 20",
      "rate: fast",
      /^s\.yaml:11:15: machine\.devices\[0\]\.load\.rate: must be a number, not 'fast'/,
    ],
    [
      "a negative rate",
      "rate: 20",
      "rate: -1",
      /^s\.yaml:11:15: machine\.devices\[0\]\.load\.rate: must be at least 0, not -1/,
    ],
    ["a size below the least", "256M", "64K", /^s\.yaml:3:3: machine\.memory: must be at least \dM, not 65536/],
    [
      "a size that is none",
      "8M",
      "8 apples",
      /^s\.yaml:11:25: machine\.devices\[0\]\.load\.footprint: '8 apples' is not a size; write bytes, or 4K/,
    ],
    [
      "a duration without unit",
      "50ms",
      "50",
      /^s\.yaml:15:3: migration\.downtimeLimit: '50' is not a duration; write 50ms/,
    ],
    [
      "a bandwidth that is none",
      "10Gbit",
      "10 lanes",
      /^s\.yaml:16:3: migration\.bandwidth: '10 lanes' is not a bandwidth/,
    ],
    [
      "a tracker of no device",
      "{ nic0: iommu }",
      "{ nic1: iommu }",
      /^s\.yaml:13:15: migration\.trackers\.nic1: there is no device 'nic1'; did you mean 'nic0'\?/,
    ],
    [
      "an unknown tracker",
      "{ nic0: iommu }",
      "{ nic0: immou }",
      /^s\.yaml:13:15: migration\.trackers\.nic0: 'immou' is not known; did you mean 'iommu'\?/,
    ],
    [
      "a list instead of fields",
      "{ count: 1 }",
      "[1]",
      /^s\.yaml:4:3: machine\.vcpus: must be a block of fields, not a list/,
    ],
    [
      "an id with spaces",
      "id: nic0",
      "id: my nic",
      /^s\.yaml:8:7: machine\.devices\[0\]\.id: 'my nic' is not possible here: lower-case letters/,
    ],
    [
      "a key given twice",
      "memory: 256M",
      "memory: 256M\n  memory: 1G",
      /^s\.yaml:4:3: not valid YAML: 'memory' is there twice/,
    ],
    ["broken YAML", "{ count: 1 }", "{ count: 1", /^s\.yaml:\d+:\d+: not valid YAML: /],
    ["an anchor that does not exist", "{ count: 1 }", "*vcpus", /^s\.yaml:\d+:\d+: .*vcpus/],
  ])("%s", (_, from, to, expected) => {
    expect(refusal(from, to)).toMatch(expected);
  });

  it("and says how many more problems there are", () => {
    expect(refusal("rate: 20, footprint: 8M", "rate: fast, footprint: 1")).toMatch(/ \(and 1 more problem\)$/);
  });

  it("and an empty file too", () => {
    expect(() => parse("")).toThrow(/^s\.yaml:1:1: /);
  });

  it("and one that would swell beyond measure through aliases", () => {
    const bomb = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"];
    for (let i = 1; i < 9; i++)
      bomb.push(
        `a${i}: &a${i} [${Array(10)
          .fill(`*a${i - 1}`)
          .join(",")}]`,
      );
    expect(() => parse(bomb.join("\n"))).toThrow(UsageError);
  });
});

describe("the scenarios that come with Dirtmap", () => {
  it("are those that the documents name", () => {
    expect(scenarioNames()).toEqual(
      ["case-a", "case-b", "case-c", "format-amd-v1", "format-arm-s1", "format-vtd-ss", "mdev-shared", "mixed"].concat([
        "nic-pair",
        "no-tracker",
        "out-of-process",
        "p2p",
        "queued-io",
        "queued-io-served",
        "quiesced-log",
        "shared-domain",
        "vgpu-pair",
      ]),
    );
  });

  it.each(scenarioNames())("%s is well-formed, says what it shows, and its workload fits its memory", (name) => {
    const { summary, machine } = loadScenario(name);
    expect(summary).not.toBe("");
    const buffers = machine.devices.reduce((sum, { load }) => sum + load.footprint, 0);
    expect(buffers + machine.vcpus.count * machine.vcpus.footprint).toBeLessThan(machine.memory / 2);
  });

  it("are listed when a name is not known, the nearest first", () => {
    expect(() => loadScenario("mixd")).toThrow(/there is no scenario 'mixd'/);
    try {
      loadScenario("mixd");
    } catch (error) {
      expect((error as UsageError).remedy).toMatch(
        /^did you mean 'mixed'\? \(there are: case-a, .*vgpu-pair\); or give a file/,
      );
    }
  });

  it("a file that is not there is named", () => {
    expect(() => loadScenario("./nowhere.yaml")).toThrow(/can't read the scenario \.\/nowhere\.yaml: ENOENT/);
  });
});

describe("what takes more than a scenario may is refused at once:", () => {
  const refused = (text: string): UsageError => {
    try {
      parse(text);
    } catch (error) {
      expect(error).toMatchObject({ code: "BAD_SCENARIO" });
      return error as UsageError;
    }
    throw new Error("it was accepted");
  };
  const levels = Array.from({ length: 9 }, (_, level) => {
    const below = level === 0 ? "x" : `*a${level - 1}`;
    return `a${level}: &a${level} [${Array(9).fill(below).join(", ")}]`;
  });

  it.each([
    ["a megabyte of keys", Array.from({ length: 80_000 }, (_, i) => `k${i}: 1`).join("\n"), /more than 262144 bytes/],
    ["many short keys", `{${"a, ".repeat(80_000)}}`, /more than 65536 words/],
    ["brackets upon brackets", "[".repeat(1 << 18), /more than 65536 words/],
    ["blocks nested without end", "- ".repeat(20_000), /nested too deeply/],
    ["aliases that stand for aliases", levels.join("\n"), /[Aa]lias/],
    ["a long list, used often", `a: &a [${"1, ".repeat(9000)}]\nb: [${"*a, ".repeat(9)}]`, /more than 65536 values/],
  ])("%s", (_, text, message) => {
    expect(refused(text).message).toMatch(message);
  });

  it("the first ten problems are named, each with its place, and the number of the others", () => {
    const { message, further } = refused(`${GOOD}${Array.from({ length: 15 }, (_, i) => `k${i}: 1\n`).join("")}`);
    expect(message).toMatch(/^s\.yaml:17:1: k0: there is no such field; .* \(and 14 more problems\)$/);
    expect(further).toHaveLength(10);
    expect(further?.[0]).toMatch(/^s\.yaml:18:1: k1: there is no such field/);
    expect(further?.[9]).toBe("5 more are named once these are mended");
  });

  it("a value and a list of names are shown in part", () => {
    const { message } = refused(GOOD.replace("model: nic", `model: ${"n".repeat(10_000)}`));
    expect(message.length).toBeLessThan(500);
  });
});
