import { describePciProbe } from "../support/pci-probe.js";

// The kernel under test is built without CONFIG_AMD_IOMMU_IOMMUFD: GET_HW_INFO's type is NONE, without data.
describePciProbe({ sysfs: "amd-iommu", hwInfo: "amd", smallestPage: undefined });
