import { gzipSync } from "node:zlib";
import { afterEach, describe, expect, test } from "vitest";
import { FakeSystem } from "../fake-system.test.helper.js";
import { hasModule, isOlder, parseRelease, readKernelConfig } from "./kernel.js";
import { chooseVfioDriver } from "./vfio-drivers.js";

const KERNEL = parseRelease("6.12.3-1-amd64");

let system = new FakeSystem();
afterEach(() => {
  system[Symbol.dispose]();
  system = new FakeSystem();
});

test("versions compare by number, not by letter, and what is none is older than all", () => {
  expect(isOlder(parseRelease("6.10.1"), [6, 7])).toBe(false);
  expect(isOlder(parseRelease("5.15.0"), [6, 2])).toBe(true);
  expect(isOlder(parseRelease("7.0.0"), [6, 7])).toBe(false);
  expect(isOlder(parseRelease("?"), [2, 6])).toBe(true);
});

describe("the kernel's configuration", () => {
  const TEXT = "# CONFIG_IOMMUFD_TEST is not set\nCONFIG_IOMMUFD=m\nCONFIG_VFIO=y\n";

  test.each([
    ["/proc/config.gz", () => system.file(`${system.roots.proc}/config.gz`, gzipSync(TEXT))],
    ["/boot", () => system.file(`${system.roots.boot}/config-${KERNEL.release}`, TEXT)],
  ])("is read from %s", (_, write) => {
    write();
    const config = readKernelConfig(system.roots, KERNEL);
    expect(["CONFIG_IOMMUFD", "CONFIG_VFIO", "CONFIG_IOMMUFD_TEST", "CONFIG_NONE"].map(config)).toEqual([
      "m",
      "y",
      "n",
      "n",
    ]);
  });

  test("is taken from /boot where /proc/config.gz is no gzip, or unpacks to more than any configuration has", () => {
    system.file(`${system.roots.boot}/config-${KERNEL.release}`, TEXT);
    for (const broken of ["nonsense", gzipSync(Buffer.alloc(2 ** 23))]) {
      system.file(`${system.roots.proc}/config.gz`, broken);
      expect(readKernelConfig(system.roots, KERNEL)("CONFIG_IOMMUFD")).toBe("m");
    }
  });

  test("is unknown, not empty, where it can't be read", () => {
    expect(readKernelConfig(system.roots, KERNEL)("CONFIG_IOMMUFD")).toBeNull();
  });
});

test("a module is found whatever it is compressed with, and whether its name is written with - or _", () => {
  const list = `${system.roots.modules}/${KERNEL.release}/modules.dep`;
  system.file(list, "kernel/drivers/iommu/iommufd/iommufd.ko.xz: kernel/x.ko\nkernel/drivers/vfio/pci/vfio-pci.ko:\n");
  expect(["iommufd", "vfio_pci", "vfio", "x"].map((name) => hasModule(system.roots, KERNEL, name))).toEqual([
    true,
    true,
    false,
    false,
  ]);
});

describe("the VFIO driver for a PCI device", () => {
  const MLX5_VF = "pci:v000015B3d0000101Esv000015B3sd00000055bc02sc00i00";

  function aliases(...lines: string[]): void {
    system.file(
      `${system.roots.modules}/${KERNEL.release}/modules.alias`,
      lines.map((line) => `alias ${line}\n`).join(""),
    );
  }

  test("is the one made for it, the most specific of several, and by its driver's name, not its module's", () => {
    aliases(
      "vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci",
      "vfio_pci:v000015B3d*sv*sd*bc*sc*i* coarse_vfio_pci",
      "vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_vfio_pci",
      "vfio_pci:v000015B3d0000101Fsv*sd*bc*sc*i* other_vfio_pci",
      "vfio_pci:v00008086d0000E20Bsv*sd*bc03sc*i* xe_vfio_pci",
      "pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_core",
    );
    expect(chooseVfioDriver(system.roots, KERNEL, MLX5_VF)).toEqual({
      driver: "mlx5_vfio_pci",
      module: "mlx5_vfio_pci",
    });
    expect(chooseVfioDriver(system.roots, KERNEL, "pci:v00008086d0000E20Bsv00000000sd00000000bc03sc00i00")).toEqual({
      driver: "xe-vfio-pci",
      module: "xe_vfio_pci",
    });
  });

  test("is vfio-pci where none is made for it, or nothing can be read of it", () => {
    const generic = { driver: "vfio-pci", module: "vfio-pci" };
    expect(chooseVfioDriver(system.roots, KERNEL, MLX5_VF)).toEqual(generic);
    aliases("vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci", "vfio_pci:broken mlx5_vfio_pci");
    expect(chooseVfioDriver(system.roots, KERNEL, MLX5_VF)).toEqual(generic);
    expect(chooseVfioDriver(system.roots, KERNEL, "pci:garbage")).toEqual(generic);
  });
});
