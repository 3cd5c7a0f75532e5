import { vfioPciTests } from "../support/vfio-pci.js";

// The test kernel is built without CONFIG_AMD_IOMMU_IOMMUFD, and then GET_HW_INFO names no type.
vfioPciTests("amd-iommu", "none");
