"""Gymnasium environments that model precision choices as actions.

Importing this package registers ``wattbit/LayerPrecision-v0`` and ``wattbit/TabularPrecision-v0``.
"""

import gymnasium

gymnasium.register(id="wattbit/LayerPrecision-v0", entry_point="envs.layer_precision:LayerPrecisionEnv")
gymnasium.register(id="wattbit/TabularPrecision-v0", entry_point="envs.tabular:TabularPrecisionEnv")
