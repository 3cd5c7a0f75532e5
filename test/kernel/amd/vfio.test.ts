import { vfioPciTests } from "../support/vfio-pci.js";

vfioPciTests("amd");
