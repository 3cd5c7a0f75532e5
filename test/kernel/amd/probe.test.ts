import { describePciProbe } from "../support/pci-probe.js";

describePciProbe({ sysfs: "amd-iommu", hwInfo: "amd" });
