"""Who labels: one file per label provider, all behind ``flows.providers.base.LabelProvider``."""
