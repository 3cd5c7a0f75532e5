export const WORKLOADS = ["a", "b", "c", "A", "B", "mdevs", "shared-mdevs"] as const;
export type WorkloadName = (typeof WORKLOADS)[number];

/** What a workload is, in a line. */
export const WORKLOAD_TEXT: Readonly<Record<WorkloadName, string>> = {
  a: "the thread's case a: mlx5 VFs and NICs in one domain, the VFs' trackers and the system IOMMU's both on",
  b: "the thread's case b: mlx5 VFs, only their own trackers on",
  c: "the thread's case c: mlx5 VFs tracked, and NICs that nothing tracks suspended",
  A: "the thread's pair A: mlx5 VFs with their own trackers, vGPUs with page pinning",
  B: "the thread's pair B: mlx5 VFs with their own trackers, NICs with the system IOMMU's, a domain each",
  mdevs: "vGPUs alone, each with page pinning",
  "shared-mdevs": "vGPUs alone, all of which mark one tracker that the emulated-IOMMU object holds",
};
