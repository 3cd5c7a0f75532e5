import { afterEach, beforeEach, expect, test } from "vitest";
import { FakeSystem } from "../../../linux/fake-system.test.helper.js";
import { deviceNames } from "./device-names.js";
import { fakeHost } from "./fake-host.test.helper.js";

const VF = "0000:3b:00.1";
const NVME = "0000:01:00.0";

let system = new FakeSystem();
beforeEach(() => {
  system.pci(VF, { driver: "mlx5_vfio_pci", group: 42, vfio: "vfio3" });
  system.pci(NVME, { driver: "nvme", group: 3, class: "0x010802" });
});
afterEach(() => {
  system[Symbol.dispose]();
  system = new FakeSystem();
});

const names = () => deviceNames(fakeHost(system, {}).host);

async function refusal(name: string) {
  const { id } = await names();
  try {
    return { id: id(name) };
  } catch (error) {
    const { message } = error as Error;
    expect(
      [...message].every((letter) => letter >= " " && letter <= "~"),
      message,
    ).toBe(true);
    return error;
  }
}

test("names become ids, in --device and as keys of options", async () => {
  const { id, byId } = await names();
  expect(["3B:00.1", "pci_0000_01_00_0"].map(id)).toEqual([VF, NVME]);
  expect(byId({ "3b:00.1": "iommu", [NVME]: "device" })).toEqual({ [VF]: "iommu", [NVME]: "device" });
  expect(byId(undefined)).toEqual({});
});

test("an unknown name is refused in one line with what comes near, or with what there is", async () => {
  expect(await refusal("0000:3b:00.2")).toMatchObject({ code: "UNKNOWN_DEVICE", remedy: `did you mean '${VF}'?` });
  expect(await refusal("quite something else")).toMatchObject({ remedy: `there are: ${NVME}, ${VF}` });
  for (let bus = 0x10; bus < 0x30; bus++) system.pci(`0000:${bus.toString(16)}:00.0`, { group: bus });
  expect(await refusal("quite something else \u001b[31m\n")).toMatchObject({
    remedy: expect.stringMatching(/^there are: (\S+, ){7}\S+ and 26 more, see `dirtmap probe --host linux`$/),
  });
});

test("an ambiguous name is refused with the ids that it may mean", async () => {
  system.pci("0000:3b:00.0", { driver: "mlx5_core", group: 41 });
  expect(await refusal("3b:00")).toMatchObject({
    code: "AMBIGUOUS_DEVICE",
    message: "'3b:00' is the name of 2 devices",
    remedy: `write one of: 0000:3b:00.0, ${VF}`,
  });
});

test("a device that is there and can't be assigned is told from one that isn't there", async () => {
  system.pci("0000:00:1c.0", { driver: "pcieport", group: 1, class: "0x060400" });
  expect(await refusal("00:1c.0")).toMatchObject({
    code: "UNKNOWN_DEVICE",
    message: "'00:1c.0' is a device of this machine, but none that could be assigned",
  });
});
