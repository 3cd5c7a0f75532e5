import { describePciProbe } from "../support/pci-probe.js";

describePciProbe({ sysfs: "intel-iommu", hwInfo: "intel-vtd", smallestPage: 4096 });
