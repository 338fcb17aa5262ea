package main

import (
	"fmt"

	"github.com/atollregistry/atoll/cmd/bench"
)

// unit is how people read a metric.
type unit struct {
	name string
	// scale is what the metric is multiplied with.
	scale float64
}

// unitOf knows the metrics that rows go by.
func unitOf(metric bench.Metric) unit {
	switch metric {
	case bench.BytesPerSecond:
		return unit{"MB/s", 1e-6}
	case bench.OperationsPerSecond:
		return unit{"operations/s", 1}
	case bench.MaxSeconds:
		return unit{"seconds", 1}
	case bench.CPUPerGB:
		return unit{"s/GB", 1}
	case bench.CPUPerOperation:
		return unit{"ms/operation", 1e3}
	}
	return unit{string(metric), 1}
}

// figure writes a metric's median, or a dash where there is none.
func figure(registry *bench.RegistryReport, metric bench.Metric) string {
	summary, ok := registry.Summary[metric]
	if !ok {
		return "-"
	}
	u := unitOf(metric)
	return three(summary.Median*u.scale) + " " + u.name
}

// three writes a number with three digits, or all that stand before the point.
func three(value float64) string {
	switch {
	case value >= 99.95:
		return fmt.Sprintf("%.0f", value)
	case value >= 9.995:
		return fmt.Sprintf("%.1f", value)
	}
	return fmt.Sprintf("%.2f", value)
}

// costMetric is what servers' CPU time is told by, as their speed is: operations or bytes.
func (r *result) costMetric() bench.Metric {
	if r.row.by == bench.OperationsPerSecond {
		return bench.CPUPerOperation
	}
	return bench.CPUPerGB
}

// ratioText is the ratio of medians, with those of turns.
func (r *result) ratioText() string {
	ratio := r.ours().Summary[r.row.by].Ratio
	return fmt.Sprintf("%.2f (%.2f to %.2f)", ratio.OfMedians, ratio.Min, ratio.Max)
}
