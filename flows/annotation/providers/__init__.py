"""Who labels: one file per label provider, all behind ``flows.annotation.providers.base.LabelProvider``."""
