import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { type LibvirtXml, libvirtText, libvirtXml, QEMU_NAMESPACE } from "../../src/vmm-options/libvirt-xml.js";
import { element, xmlText } from "../../src/xml.js";
import { generatedPlans, SEEDS } from "./generated-hosts.js";
import { CASES, caseDevices } from "./vmm-cases.js";

/*
 * The XML that is printed, against libvirt's own schema: the one installed, or the one in DIRTMAP_LIBVIRT_SCHEMAS.
 */

const TIMEOUT_MS = 20_000;
const schemas = process.env.DIRTMAP_LIBVIRT_SCHEMAS ?? "/usr/share/libvirt/schemas";
const xmllint = spawnSync("xmllint", ["--version"]).error === undefined;

function lint(options: readonly string[], input: string): string {
  const { status, stderr, error } = spawnSync("xmllint", ["--noout", ...options, "-"], {
    input,
    encoding: "utf8",
    timeout: TIMEOUT_MS,
  });
  if (error) throw error;
  return status === 0 ? "valid" : stderr;
}

describe.skipIf(!xmllint)(`well-formed XML${xmllint ? "" : " (skipped: install libxml2-utils)"}`, () => {
  test.each(CASES)("%s", async (name) => {
    const text = libvirtText(libvirtXml(await caseDevices(name)));
    expect(lint([], text)).toBe("valid");
    expect(lint([], text.replace("</devices>", ""))).not.toBe("valid");
  });

  test("text that would break out of attributes and comments does not", () => {
    const nasty = `'"<>&]]>--><x/><!--${String.fromCharCode(0, 1, 127, 0xd800)}-`;
    expect(lint([], xmlText(element("a", { b: nasty }, [{ comment: nasty }, { comment: "-" }])))).toBe("valid");
  });
});

function domainWith({ hostdevs, qemu }: Pick<LibvirtXml, "hostdevs" | "qemu">): string {
  const devices = xmlText(element("devices", {}, hostdevs));
  return `<domain type='kvm' xmlns:qemu='${QEMU_NAMESPACE}'>
    <name>guest</name><memory unit='GiB'>4</memory><os><type arch='x86_64' machine='q35'>hvm</type></os>
    ${devices}${qemu.map((node) => xmlText(node)).join("")}</domain>`;
}

const domainSchema = join(schemas, "domain.rng");
const has = xmllint && existsSync(domainSchema);
describe.skipIf(!has)(
  `libvirt's schema${has ? "" : " (skipped: install libxml2-utils, and libvirt-common or libvirt0)"}`,
  () => {
    // <driver iommufd='yes'/> is in it since 12.1.0.
    const iommufd = has && readFileSync(join(schemas, "basictypes.rng"), "utf8").includes('name="iommufd"');

    test.each(CASES)(`%s: a domain with it is valid where libvirt is new enough`, async (name) => {
      const { hostdevs, qemu, oldest } = libvirtXml(await caseDevices(name));
      expect(hostdevs.length).toBeGreaterThan(0);
      const domain = domainWith({ hostdevs, qemu });
      const verdict = lint(["--relaxng", domainSchema], domain);
      if (iommufd || oldest.libvirt === "8.2.0") expect(verdict).toMatch(/^valid$/);
      else expect(verdict).not.toBe("valid");
      const misspelt = domain.replaceAll("alias name=", "alias nome=");
      expect(lint(["--relaxng", domainSchema], misspelt)).not.toBe("valid");
    });

    test(`made-up hosts of every kind, ${SEEDS}`, async () => {
      const folder = mkdtempSync(join(tmpdir(), "dirtmap-domains-"));
      try {
        const plans = await generatedPlans();
        const files = plans.map((made) => {
          const domain = domainWith(made.plan.libvirt);
          const file = join(folder, `${made.seed}.xml`);
          // What the installed libvirt is too old for is no fault of the rest.
          writeFileSync(file, iommufd ? domain : domain.replaceAll(" iommufd='yes'", ""));
          return file;
        });
        // A run for all: reading the schema takes longer than all domains.
        const { stderr } = spawnSync("xmllint", ["--noout", "--relaxng", domainSchema, ...files], {
          encoding: "utf8",
          timeout: 10 * TIMEOUT_MS,
        });
        const verdicts = stderr.split("\n").filter((line) => line.endsWith(" validates"));
        expect(stderr.split("\n").filter((line) => line !== "" && !line.endsWith(" validates"))).toEqual([]);
        expect(verdicts).toHaveLength(plans.length);
      } finally {
        rmSync(folder, { recursive: true, force: true });
      }
    });
  },
);
