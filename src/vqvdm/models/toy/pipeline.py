from vqvdm import VQVDMPipeline

__all__ = ["VQVDMPipeline"]
