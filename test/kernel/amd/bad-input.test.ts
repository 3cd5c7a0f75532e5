import { describePciBadInput } from "../support/pci-bad-input.js";

describePciBadInput();
