import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { RunMetrics } from "../../src/observe/metrics/metrics.js";
import { dirtmap } from "../support/program.js";

/* The files for Grafana and systemd. */

const file = (path: string) => fileURLToPath(new URL(`../../../contrib/${path}`, import.meta.url));

interface Panel {
  readonly id: number;
  readonly title: string;
  readonly targets: readonly { readonly expr: string; readonly legendFormat: string }[];
}

describe("the Grafana dashboard", () => {
  const dashboard = JSON.parse(readFileSync(file("grafana/dirtmap.json"), "utf8"));
  const panels: readonly Panel[] = dashboard.panels;

  it("asks for metrics that there are, by labels that they have, and shows them all", async () => {
    const described = await new RunMetrics().registry.getMetricsAsJSON();
    const labels = new Map((await labelsOf()).map(([name, names]) => [name, names]));
    const asked = new Set<string>();
    const variables = dashboard.templating.list.flatMap(({ definition }: { definition?: string }) => definition ?? []);
    for (const query of [...panels.flatMap(({ targets }) => targets.map(({ expr }) => expr)), ...variables]) {
      const metrics = query.match(/dirtmap_[a-z_]+/g) ?? [];
      expect(metrics, query).not.toEqual([]);
      for (const metric of metrics) {
        const name = metric.replace(/_(bucket|sum|count)$/, "");
        expect([...labels.keys()], query).toContain(name);
        asked.add(name);
        const [, selector = ""] = new RegExp(`${metric}\\{([^}]*)\\}`).exec(query) ?? [];
        for (const [, label] of selector.matchAll(/(\w+)=~/g)) expect(labels.get(name), query).toContain(label);
      }
    }
    expect([...asked].sort()).toEqual(described.map(({ name }) => name).sort());
  });

  it("has legends whose labels the queries keep, and panels that are told apart", () => {
    expect(new Set(panels.map(({ id }) => id)).size).toBe(panels.length);
    for (const { targets } of panels) {
      for (const { expr, legendFormat } of targets) {
        const [, kept] = /by \(([^)]*)\)/.exec(expr) ?? [];
        if (kept === undefined) continue;
        for (const [, label] of legendFormat.matchAll(/\{\{(\w+)\}\}/g))
          expect(kept.split(", "), expr).toContain(label);
      }
    }
  });
});

/** Each metric with its labels' names, as prom-client keeps them. */
async function labelsOf(): Promise<[string, readonly string[]][]> {
  const { registry } = new RunMetrics();
  return registry.getMetricsAsArray().map((metric) => {
    const { name, labelNames } = metric as unknown as { name: string; labelNames: readonly string[] };
    return [name, labelNames];
  });
}

describe("the systemd unit", () => {
  const hasSystemd = spawnSync("systemd-analyze", ["--version"]).status === 0;

  it.skipIf(!hasSystemd)("is one that systemd takes, and leaves the service little to do harm with", () => {
    const runtime = mkdtempSync(join(tmpdir(), "dirtmap-unit-"));
    const analyze = (...args: string[]) =>
      spawnSync("systemd-analyze", ["--user", ...args, file("systemd/dirtmap-serve.service")], {
        env: { ...process.env, XDG_RUNTIME_DIR: runtime },
        encoding: "utf8",
      });
    try {
      const verified = analyze("verify");
      expect([verified.status, verified.stderr]).toEqual([0, ""]);
      const { stdout } = analyze("security", "--offline=true", "--no-pager");
      expect(Number(/Overall exposure level for .*?: ([\d.]+)/.exec(stdout)?.[1])).toBeLessThan(4);
    } finally {
      rmSync(runtime, { recursive: true, force: true });
    }
  });

  it("starts a command that there is, with options that it has", async () => {
    const [, words = ""] =
      /^ExecStart=\/usr\/bin\/env dirtmap (.*)$/m.exec(readFileSync(file("systemd/dirtmap-serve.service"), "utf8")) ??
      [];
    const [command, ...options] = words.split(" ").filter((word) => !/[:\d]/.test(word));
    const { code, stdout } = await dirtmap([command, "--help"]);
    expect(code).toBe(0);
    for (const option of options) expect(stdout).toContain(`${option} <`);
  });
});
