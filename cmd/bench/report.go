package bench

import "slices"

// Report is all that came of a run. Sizes are in bytes.
type Report struct {
	Workload string `json:"workload"`
	// Size and Chunk are 0 where the workload does not go by them.
	Size            int64            `json:"size_bytes,omitempty"`
	Chunk           int64            `json:"chunk_bytes,omitempty"`
	Clients         int              `json:"clients"`
	DurationSeconds float64          `json:"duration_seconds"`
	WarmUpSeconds   float64          `json:"warm_up_seconds"`
	Cold            bool             `json:"cold,omitempty"`
	Registries      []RegistryReport `json:"registries"`
}

// RegistryReport is what came of one registry.
type RegistryReport struct {
	Name   string   `json:"name"`
	URLs   []string `json:"urls,omitempty"`
	Static []string `json:"static,omitempty"`
	Turns  []Turn   `json:"turns"`
	// Summary has the metrics that every turn has.
	Summary map[Metric]Summary `json:"summary"`
}

// Summary is one metric over all turns.
type Summary struct {
	Median float64 `json:"median"`
	// Ratio compares it with the first registry's; the first has none.
	Ratio *Ratio `json:"ratio,omitempty"`
}

// Ratio is how many times as much as the first registry's something is.
type Ratio struct {
	// OfMedians is the median over the first registry's median.
	OfMedians float64 `json:"of_medians"`
	// Min and Max are those of the turns, each over the first registry's turn of the same number.
	Min float64 `json:"min"`
	Max float64 `json:"max"`
}

// Metric is the name of a number that turns are compared by.
type Metric string

// The metrics. A GB is 10^9 bytes.
const (
	OperationsPerSecond Metric = "operations_per_second"
	BytesPerSecond      Metric = "bytes_per_second"
	P50Seconds          Metric = "p50_seconds"
	P99Seconds          Metric = "p99_seconds"
	MaxSeconds          Metric = "max_seconds"
	CPUPerGB            Metric = "cpu_seconds_per_gb"
	CPUPerOperation     Metric = "cpu_seconds_per_operation"
	PeakBytes           Metric = "peak_rss_bytes"
	LargestBytes        Metric = "largest_high_water_rss_bytes"
	ClientCPUPerGB      Metric = "client_cpu_seconds_per_gb"
	ClientPerOperation  Metric = "client_cpu_seconds_per_operation"
)

const gb = 1e9

// Value is a metric of one turn, if the turn has it.
func (t *Turn) Value(m Metric) (value float64, ok bool) {
	operations, moved := float64(t.Operations), float64(t.Bytes)/gb
	switch {
	case t.Operations == 0 || t.Seconds <= 0:
		return 0, false
	case m == OperationsPerSecond:
		return operations / t.Seconds, true
	case m == BytesPerSecond:
		return float64(t.Bytes) / t.Seconds, t.Bytes > 0
	case m == P50Seconds:
		return t.P50, true
	case m == P99Seconds:
		return t.P99, true
	case m == MaxSeconds:
		return t.Max, true
	case m == CPUPerGB && t.Servers != nil && moved > 0:
		return t.Servers.CPUSeconds / moved, true
	case m == CPUPerOperation && t.Servers != nil:
		return t.Servers.CPUSeconds / operations, true
	case m == PeakBytes && t.Servers != nil:
		return float64(t.Servers.PeakBytes), true
	case m == LargestBytes && t.Servers != nil:
		return float64(t.Servers.LargestBytes), true
	case m == ClientCPUPerGB && t.Client != nil && moved > 0:
		return t.Client.CPUSeconds / moved, true
	case m == ClientPerOperation && t.Client != nil:
		return t.Client.CPUSeconds / operations, true
	}
	return 0, false
}

// Metrics are all that there are, in the order in which people read them.
func Metrics() []Metric {
	return []Metric{
		OperationsPerSecond, BytesPerSecond, P50Seconds, P99Seconds, MaxSeconds,
		CPUPerGB, CPUPerOperation, PeakBytes, LargestBytes, ClientCPUPerGB, ClientPerOperation,
	}
}

// summarize completes a report whose turns are there.
func (r *Report) summarize() {
	for i := range r.Registries {
		registry := &r.Registries[i]
		registry.Summary = map[Metric]Summary{}
		for _, metric := range Metrics() {
			values, ok := valuesOf(registry.Turns, metric)
			if !ok {
				continue
			}
			summary := Summary{Median: median(values)}
			if first, ok := valuesOf(r.Registries[0].Turns, metric); ok && i > 0 {
				summary.Ratio = ratioOf(values, first)
			}
			registry.Summary[metric] = summary
		}
	}
}

// valuesOf returns a metric of all turns, if all have it.
func valuesOf(turns []Turn, metric Metric) (values []float64, ok bool) {
	for i := range turns {
		value, ok := turns[i].Value(metric)
		if !ok {
			return nil, false
		}
		values = append(values, value)
	}
	return values, len(values) > 0
}

// ratioOf compares turns with those of the first registry. There is none to a zero, as
// with the CPU time of a turn that took less than can be measured.
func ratioOf(values, first []float64) *Ratio {
	if slices.Contains(first, 0) || len(values) != len(first) {
		return nil
	}
	ratios := make([]float64, len(values))
	for i := range values {
		ratios[i] = values[i] / first[i]
	}
	return &Ratio{OfMedians: median(values) / median(first), Min: slices.Min(ratios), Max: slices.Max(ratios)}
}

// Counts returns how many operations were done and how many failed, in all.
func (r *Report) Counts() (done, failed int) {
	for _, registry := range r.Registries {
		for _, turn := range registry.Turns {
			done, failed = done+turn.Operations, failed+turn.Failed
		}
	}
	return done, failed
}
