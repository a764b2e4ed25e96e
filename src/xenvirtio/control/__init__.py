"""dom0-light: dom0 for dom0less guests without a toolstack: XenStore, introduction, death, backends."""
