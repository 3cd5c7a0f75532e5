import { readFileSync, writeFileSync } from "node:fs";
import { SCENARIOS_DOC, withReference } from "./document.js";

// `npm run docs:scenarios`: brings the reference in docs/scenarios.md up to date.
writeFileSync(SCENARIOS_DOC, withReference(readFileSync(SCENARIOS_DOC, "utf8")));
