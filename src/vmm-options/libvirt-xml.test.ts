import { describe, expect, test } from "vitest";
import { element, xmlText } from "../xml.js";
import { vmmDevices } from "./fake-devices.test.helper.js";
import { libvirtText, libvirtXml } from "./libvirt-xml.js";

describe("domain XML", () => {
  test("a PCI device goes by libvirt's own iommufd; what libvirt does not model is handed to QEMU", () => {
    const { hostdevs, qemu, oldest } = libvirtXml(vmmDevices({ mlx0: { own: true, iommu: true } }));
    expect([...hostdevs, ...qemu].map((node) => xmlText(node)).join("\n")).toBe(
      `<hostdev mode='subsystem' type='pci' managed='yes'>
  <driver name='vfio' iommufd='yes'/>
  <source>
    <address domain='0x0000' bus='0x3b' slot='0x00' function='0x0'/>
  </source>
  <alias name='ua-mlx0'/>
</hostdev>
<qemu:override>
  <qemu:device alias='ua-mlx0'>
    <!-- mlx0: the dirty bits of its HWPT are read; its own log is left off -->
    <qemu:frontend>
      <qemu:property name='enable-migration' type='string' value='auto'/>
      <qemu:property name='x-device-dirty-page-tracking' type='string' value='off'/>
    </qemu:frontend>
  </qemu:device>
</qemu:override>`,
    );
    expect(oldest).toEqual({ libvirt: "12.1.0", qemu: "9.1" });
  });

  test("a second kind of tracker gets an iommufd object beside libvirt's", () => {
    const { qemu, notes } = libvirtXml(vmmDevices({ mlx0: { own: true }, nic0: { iommu: true }, old0: {} }));
    const text = qemu.map((node) => xmlText(node)).join("\n");
    expect(text.match(/<qemu:arg value='[^']*'\/>/g)).toEqual([
      "<qemu:arg value='-object'/>",
      "<qemu:arg value='iommufd,id=dirtmap-hwpt'/>",
      "<qemu:arg value='-object'/>",
      "<qemu:arg value='iommufd,id=dirtmap-untracked'/>",
    ]);
    expect(text.match(/name='iommufd' type='string' value='[^']*'/g)).toEqual([
      "name='iommufd' type='string' value='dirtmap-hwpt'",
      "name='iommufd' type='string' value='dirtmap-untracked'",
    ]);
    expect(notes.map((note) => note.text)).toContainEqual(expect.stringContaining("cgroup_device_acl"));
  });

  test("an mdev is given by its UUID, and without iommufd: libvirt 8.2.0 will do", () => {
    const { hostdevs, qemu, oldest } = libvirtXml(vmmDevices({ gpu0: { mdev: true, own: true } }));
    expect(xmlText(hostdevs[0])).toBe(
      `<hostdev mode='subsystem' type='mdev' model='vfio-pci'>
  <source>
    <address uuid='83b8f4f2-509f-382f-3c1e-e6bfe0fa1000'/>
  </source>
  <alias name='ua-gpu0'/>
</hostdev>`,
    );
    expect(qemu.map(({ name }) => name)).toEqual(["qemu:override"]);
    expect(oldest.libvirt).toBe("8.2.0");
  });

  test("without devices there is nothing to print", () => {
    expect(libvirtText(libvirtXml([]))).toBe("");
  });
});

describe("XML text", () => {
  test("attributes are escaped, and what XML can't express is shown as numbers", () => {
    expect(xmlText(element("a", { b: `<&>'"\u0000\n\ufffe` }))).toBe(
      "<a b='&lt;&amp;&gt;&apos;&quot;\\u{0}\\u{a}\\u{fffe}'/>",
    );
  });

  test("a comment can't be ended from inside", () => {
    expect(xmlText({ comment: "a --> <b/> <!-- c -" })).toBe("<!-- a - -> <b/> <!- - c - -->");
    expect(xmlText({ comment: "----" })).not.toMatch(/<!--.*--.*-->/);
  });
});
