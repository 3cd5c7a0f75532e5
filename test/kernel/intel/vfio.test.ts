import { vfioPciTests } from "../support/vfio-pci.js";

vfioPciTests("intel-iommu", "intel-vtd");
