import { createRequire } from "node:module";

/** A metric as parse-prometheus-text-format, which has no types, gives it. */
export interface MetricFamily {
  readonly name: string;
  readonly help: string;
  readonly type: "COUNTER" | "GAUGE" | "HISTOGRAM";
  readonly metrics: readonly { readonly value?: string; readonly labels?: Readonly<Record<string, string>> }[];
}

/** Parses the text that Prometheus scrapes. */
export const parseMetrics: (text: string) => MetricFamily[] = createRequire(import.meta.url)(
  "parse-prometheus-text-format",
);
