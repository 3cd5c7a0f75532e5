import { expect, test } from "vitest";
import { libvirtText, libvirtXml } from "../../src/vmm-options/libvirt-xml.js";
import { qemuOptions, qemuText } from "../../src/vmm-options/qemu-command-line.js";
import { caseDevices } from "./vmm-cases.js";

/*
 * What is printed for the thread's cases, in full: to be read as an operator would.
 */

test("case a: both trackers on takes two iommufds, since QEMU asks one kind of tracker per iommufd", async () => {
  expect(qemuText(qemuOptions(await caseDevices("case-a")))).toBe(
    `# QEMU 9.1, the first that reads the dirty bits of HWPTs, or later
# devices whose own log is read: vf0
-object iommufd,id=dirtmap-log
# devices that are tracked by their HWPT: nic0
-object iommufd,id=dirtmap-hwpt
# vf0: its own log is read
-device vfio-pci,id=vfio-vf0,host=ffff:ff:1f.0,iommufd=dirtmap-log,enable-migration=auto
# nic0: the dirty bits of its HWPT are read
-device vfio-pci,id=vfio-nic0,host=ffff:ff:1f.1,iommufd=dirtmap-hwpt,enable-migration=auto
# note: nic0: QEMU can't set IOMMU_OPTION_HUGE_PAGES = 0: a write through a large IOPTE makes the whole of it dirty. amd_iommu=nohugepages or intel_iommu=sp_off on the host's kernel command line keeps all IOPTEs small.
# note: nic0: Linux from 6.19 to at least 7.2 leaves the last entry of a dirty contiguous leaf of AMD's page tables out of the bitmap, and cleans it. Dirtmap makes up for it, QEMU does not: writes can be lost. Boot the host with amd_iommu=nohugepages, or have the device's own log read.
# note: QEMU asks one kind of tracker per iommufd object, and each object has an IOAS of its own, which pins all of guest memory and counts it against the limit of locked memory: 2 times the size of the guest.
# note: vf0, nic0 can't share a domain in QEMU, since they have different trackers.`,
  );
});

test("case b: only the mlx5 tracker on is what QEMU does by itself", async () => {
  expect(qemuText(qemuOptions(await caseDevices("case-b")))).toBe(
    `# QEMU 9.0, the first with iommufd objects, or later
# devices whose own log is read: vf0
-object iommufd,id=dirtmap-log
# vf0: its own log is read
-device vfio-pci,id=vfio-vf0,host=ffff:ff:1f.0,iommufd=dirtmap-log,enable-migration=auto`,
  );
});

test("case c: the untracked device blocks migration until it is unplugged, since QEMU can't suspend it", async () => {
  expect(qemuText(qemuOptions(await caseDevices("case-c")))).toBe(
    `# QEMU 9.0, the first with iommufd objects, or later
# devices whose own log is read: vf0; nic0 until unplugged
-object iommufd,id=dirtmap-log
# vf0: its own log is read
-device vfio-pci,id=vfio-vf0,host=ffff:ff:1f.0,iommufd=dirtmap-log,enable-migration=auto
# nic0: no migration starts while it is plugged in
-device vfio-pci,id=vfio-nic0,host=ffff:ff:1f.1,iommufd=dirtmap-log,enable-migration=off
# note: nic0: QEMU can't suspend a single device. Unplug it before migration (device_del, or virsh detach-device; its slot must be one that can be hot-unplugged) and plug it in again at the destination. For a NIC with a virtio-net standby, failover_pair_id= does both.`,
  );
});

test("case a for libvirt: a second iommufd is handed through to QEMU, with the permissions that it takes", async () => {
  expect(libvirtText(libvirtXml(await caseDevices("case-a")))).toBe(
    `<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <!-- libvirt 12.1.0 and QEMU 9.1, or later. To be merged into a domain's XML. -->
  <!-- note: nic0: QEMU can't set IOMMU_OPTION_HUGE_PAGES = 0: a write through a large IOPTE makes the whole of it dirty. amd_iommu=nohugepages or intel_iommu=sp_off on the host's kernel command line keeps all IOPTEs small. -->
  <!-- note: nic0: Linux from 6.19 to at least 7.2 leaves the last entry of a dirty contiguous leaf of AMD's page tables out of the bitmap, and cleans it. Dirtmap makes up for it, QEMU does not: writes can be lost. Boot the host with amd_iommu=nohugepages, or have the device's own log read. -->
  <!-- note: QEMU asks one kind of tracker per iommufd object, and each object has an IOAS of its own, which pins all of guest memory and counts it against the limit of locked memory: 2 times the size of the guest. -->
  <!-- note: vf0, nic0 can't share a domain in QEMU, since they have different trackers. -->
  <!-- note: libvirt calls a domain with <qemu:override> tainted, and does not apply it to what is plugged in later. -->
  <!-- note: libvirt opens /dev/iommu for one object a domain; for dirtmap-hwpt QEMU does. Put /dev/iommu into cgroup_device_acl of /etc/libvirt/qemu.conf, let the user of QEMU read and write it, and raise the hard_limit of <memtune>. -->
  <devices>
    <hostdev mode='subsystem' type='pci' managed='yes'>
      <driver name='vfio' iommufd='yes'/>
      <source>
        <address domain='0xffff' bus='0xff' slot='0x1f' function='0x0'/>
      </source>
      <alias name='ua-vf0'/>
    </hostdev>
    <hostdev mode='subsystem' type='pci' managed='yes'>
      <driver name='vfio' iommufd='yes'/>
      <source>
        <address domain='0xffff' bus='0xff' slot='0x1f' function='0x1'/>
      </source>
      <alias name='ua-nic0'/>
    </hostdev>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-object'/>
    <qemu:arg value='iommufd,id=dirtmap-hwpt'/>
  </qemu:commandline>
  <qemu:override>
    <qemu:device alias='ua-vf0'>
      <!-- vf0: its own log is read -->
      <qemu:frontend>
        <qemu:property name='enable-migration' type='string' value='auto'/>
      </qemu:frontend>
    </qemu:device>
    <qemu:device alias='ua-nic0'>
      <!-- nic0: the dirty bits of its HWPT are read -->
      <qemu:frontend>
        <qemu:property name='iommufd' type='string' value='dirtmap-hwpt'/>
        <qemu:property name='enable-migration' type='string' value='auto'/>
      </qemu:frontend>
    </qemu:device>
  </qemu:override>
</domain>`,
  );
});
