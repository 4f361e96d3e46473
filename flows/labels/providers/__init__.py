"""Who labels: one file per label provider, all behind ``flows.labels.providers.base.LabelProvider``."""
